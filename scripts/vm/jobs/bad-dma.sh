#!/bin/sh
# A DMA to an address that is not mapped: shows that the IOMMU's faults are noticed and fail a job.
# machine: disks
# tests: vfio
# expect: iommu-fault
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
small=$(address_of SMALL)
take "$small"
XTENT_BAD_DMA=$small ./tests/vfio --nocapture dma::

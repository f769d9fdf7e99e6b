/* What xtent needs of SPDK beyond plain functions: macros, bit fields, and structures whose layout
 * differs between SPDK's versions and is therefore filled in by C. */
#ifndef XTENT_SPDK_SHIM_H
#define XTENT_SPDK_SHIM_H

#include <stdbool.h>
#include <stdint.h>

#include "spdk/env.h"
#include "spdk/log.h"
#include "spdk/nvme.h"
#include "spdk/version.h"

/* Year and month of the release that this was compiled against: 2409 for v24.09. */
int xtent_spdk_version(void);

struct xtent_spdk_env {
    const char *name;
    const char *core_mask;   /* NULL for SPDK's own choice */
    const char *dpdk_args;   /* NULL for none */
    int shm_id;              /* negative: not shared */
    int memory_mib;          /* negative: grows as needed (hugepages only) */
    bool hugepages;
    bool pci;
};

/* Starts the environment of this process, once. 0 or a negative errno. */
int xtent_spdk_env_start(const struct xtent_spdk_env *options);

/* Sends what SPDK logs to `line` (level, text without a newline), and nowhere else. */
void xtent_spdk_log_to(void (*line)(int level, const char *text));

struct xtent_spdk_host {
    const char *hostnqn;     /* NULL for SPDK's own */
    const char *hostaddr;    /* NULL for the system's choice */
    uint32_t keep_alive_ms;
    uint32_t admin_timeout_ms;
    uint32_t connect_timeout_ms;
    uint32_t queue_entries;
    uint32_t io_queues;
};

struct xtent_spdk_attach;

/* Begins to attach one controller. NULL when that cannot even begin. `trid` is copied. */
struct xtent_spdk_attach *xtent_spdk_attach_start(const struct spdk_nvme_transport_id *trid,
                                                  const struct xtent_spdk_host *host);

/* -EAGAIN: call again. Otherwise `attach` is gone, and the result is 0 with the controller, or a
 * negative errno. */
int xtent_spdk_attach_poll(struct xtent_spdk_attach *attach, struct spdk_nvme_ctrlr **ctrlr);

struct xtent_spdk_ctrlr_info {
    char model[41];
    char serial[21];
    char firmware[9];
    char subnqn[224];
    uint32_t version;
    uint32_t max_transfer_bytes;
    uint32_t queue_entries;
    uint16_t queues;
    bool volatile_write_cache;
    bool discovery;
};

void xtent_spdk_ctrlr_info(struct spdk_nvme_ctrlr *ctrlr, struct xtent_spdk_ctrlr_info *info);

struct xtent_spdk_ns_info {
    uint64_t blocks;
    uint32_t block_bytes;
    uint32_t metadata_bytes;
    uint32_t max_transfer_bytes;
    uint32_t boundary_blocks;
    uint8_t csi;
    bool protection;
    bool read_only;
    bool write_zeroes;
    bool deallocate;
};

/* Of a namespace of this controller. */
void xtent_spdk_ns_info(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_ns *ns, struct xtent_spdk_ns_info *info);

/* A queue pair with batched doorbells, connected. NULL when there is none. */
struct spdk_nvme_qpair *xtent_spdk_qpair(struct spdk_nvme_ctrlr *ctrlr, uint32_t entries, uint32_t requests);

/* Status code type << 8 | status code of a completion; 0 is success. */
uint32_t xtent_spdk_status(const struct spdk_nvme_cpl *cpl);

/* Whether the controller says, by its registers, that it is disabled: it then touches no memory.
 * For PCIe and vfio-user. */
bool xtent_spdk_is_disabled(struct spdk_nvme_ctrlr *ctrlr);

bool xtent_spdk_is_fabrics(enum spdk_nvme_transport_type trtype);

struct xtent_spdk_log_entry {
    uint8_t trtype;
    uint8_t adrfam;
    uint8_t subtype;
    char traddr[257];
    char trsvcid[33];
    char subnqn[257];
};

/* Reads the discovery log of a discovery controller and calls `each` for each entry. 0 or a
 * negative errno. */
int xtent_spdk_discover(struct spdk_nvme_ctrlr *ctrlr, uint32_t timeout_ms,
                        void (*each)(void *context, const struct xtent_spdk_log_entry *entry), void *context);

#endif

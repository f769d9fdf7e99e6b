/* See shim.h. */
#include "shim.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "spdk/nvmf_spec.h"

int xtent_spdk_version(void)
{
    return SPDK_VERSION_MAJOR * 100 + SPDK_VERSION_MINOR;
}

int xtent_spdk_env_start(const struct xtent_spdk_env *options)
{
    struct spdk_env_opts opts;

    memset(&opts, 0, sizeof(opts));
#if SPDK_VERSION >= SPDK_VERSION_NUM(24, 5, 0)
    opts.opts_size = sizeof(opts);
#endif
    spdk_env_opts_init(&opts);
    opts.name = options->name;
    if (options->core_mask != NULL) {
        opts.core_mask = options->core_mask;
    }
    opts.shm_id = options->shm_id;
    opts.mem_size = options->memory_mib;
    opts.no_pci = !options->pci;
    opts.no_huge = !options->hugepages;
    /* One file for each piece of memory: it is passed to a controller of another process
     * (vfio-user). */
    opts.hugepage_single_segments = options->hugepages;
    opts.env_context = (void *)options->dpdk_args;
    return spdk_env_init(&opts);
}

static void (*g_line)(int level, const char *text);

static void log_line(int level, const char *file, const int number, const char *function, const char *format,
                     va_list arguments)
{
    char text[512];
    size_t length;

    (void)file;
    (void)number;
    (void)function;
    vsnprintf(text, sizeof(text), format, arguments);
    length = strlen(text);
    while (length > 0 && text[length - 1] == '\n') {
        text[--length] = '\0';
    }
    if (g_line != NULL) {
        g_line(level, text);
    }
}

void xtent_spdk_log_to(void (*line)(int level, const char *text))
{
    g_line = line;
    spdk_log_open(log_line);
}

struct xtent_spdk_attach {
    /* First: SPDK hands its address to the callback, and reads it until the end. */
    struct spdk_nvme_ctrlr_opts opts;
    struct spdk_nvme_probe_ctx *probe;
    struct spdk_nvme_ctrlr *ctrlr;
};

static void attached(void *context, const struct spdk_nvme_transport_id *trid, struct spdk_nvme_ctrlr *ctrlr,
                     const struct spdk_nvme_ctrlr_opts *opts)
{
    struct xtent_spdk_attach *attach = context;

    (void)trid;
    (void)opts;
    attach->ctrlr = ctrlr;
}

struct xtent_spdk_attach *xtent_spdk_attach_start(const struct spdk_nvme_transport_id *trid,
                                                  const struct xtent_spdk_host *host)
{
    struct xtent_spdk_attach *attach = calloc(1, sizeof(*attach));

    if (attach == NULL) {
        return NULL;
    }
    spdk_nvme_ctrlr_get_default_ctrlr_opts(&attach->opts, sizeof(attach->opts));
    if (host->hostnqn != NULL) {
        snprintf(attach->opts.hostnqn, sizeof(attach->opts.hostnqn), "%s", host->hostnqn);
    }
    if (host->hostaddr != NULL) {
        snprintf(attach->opts.src_addr, sizeof(attach->opts.src_addr), "%s", host->hostaddr);
    }
    attach->opts.keep_alive_timeout_ms = host->keep_alive_ms;
    attach->opts.admin_timeout_ms = host->admin_timeout_ms;
    attach->opts.fabrics_connect_timeout_us = (uint64_t)host->connect_timeout_ms * 1000;
    attach->opts.io_queue_size = host->queue_entries;
    attach->opts.num_io_queues = host->io_queues;
    attach->probe = spdk_nvme_connect_async(trid, &attach->opts, attached);
    if (attach->probe == NULL) {
        free(attach);
        return NULL;
    }
    return attach;
}

int xtent_spdk_attach_poll(struct xtent_spdk_attach *attach, struct spdk_nvme_ctrlr **ctrlr)
{
    int rc = spdk_nvme_probe_poll_async(attach->probe);

    if (rc == -EAGAIN) {
        return rc;
    }
    *ctrlr = attach->ctrlr;
    if (rc == 0 && attach->ctrlr == NULL) {
        rc = -ENODEV;
    }
    free(attach);
    return rc;
}

/* A field of fixed length, filled up with spaces, as a string. */
static void copy_field(char *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    to[length] = '\0';
    while (length > 0 && (to[length - 1] == ' ' || to[length - 1] == '\0')) {
        to[--length] = '\0';
    }
}

void xtent_spdk_ctrlr_info(struct spdk_nvme_ctrlr *ctrlr, struct xtent_spdk_ctrlr_info *info)
{
    const struct spdk_nvme_ctrlr_data *data = spdk_nvme_ctrlr_get_data(ctrlr);
    const struct spdk_nvme_ctrlr_opts *opts = spdk_nvme_ctrlr_get_opts(ctrlr);

    memset(info, 0, sizeof(*info));
    copy_field(info->model, data->mn, sizeof(data->mn));
    copy_field(info->serial, data->sn, sizeof(data->sn));
    copy_field(info->firmware, data->fr, sizeof(data->fr));
    copy_field(info->subnqn, data->subnqn, sizeof(info->subnqn) - 1);
    info->version = spdk_nvme_ctrlr_get_regs_vs(ctrlr).raw;
    info->max_transfer_bytes = spdk_nvme_ctrlr_get_max_xfer_size(ctrlr);
    info->queues = (uint16_t)(opts->num_io_queues > UINT16_MAX ? UINT16_MAX : opts->num_io_queues);
    info->queue_entries = opts->io_queue_size;
    info->volatile_write_cache = data->vwc.present != 0;
    info->discovery = spdk_nvme_ctrlr_is_discovery(ctrlr);
}

void xtent_spdk_ns_info(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_ns *ns, struct xtent_spdk_ns_info *info)
{
    const struct spdk_nvme_ns_data *data = spdk_nvme_ns_get_data(ns);
    uint32_t flags = spdk_nvme_ns_get_flags(ns);
    uint32_t boundary = spdk_nvme_ns_get_optimal_io_boundary(ns);

    (void)ctrlr;
    memset(info, 0, sizeof(*info));
    info->blocks = spdk_nvme_ns_get_num_sectors(ns);
    info->block_bytes = spdk_nvme_ns_get_sector_size(ns);
    info->metadata_bytes = spdk_nvme_ns_get_md_size(ns);
    info->max_transfer_bytes = spdk_nvme_ns_get_max_io_xfer_size(ns);
    info->boundary_blocks = boundary;
    info->csi = (uint8_t)spdk_nvme_ns_get_csi(ns);
    info->protection = spdk_nvme_ns_get_pi_type(ns) != SPDK_NVME_FMT_NVM_PROTECTION_DISABLE;
    /* Its first bit; its name differs between versions. */
    info->read_only = (*(const uint8_t *)&data->nsattr & 1) != 0;
    info->write_zeroes = (flags & SPDK_NVME_NS_WRITE_ZEROES_SUPPORTED) != 0;
    info->deallocate = (flags & SPDK_NVME_NS_DEALLOCATE_SUPPORTED) != 0;
}

struct spdk_nvme_qpair *xtent_spdk_qpair(struct spdk_nvme_ctrlr *ctrlr, uint32_t entries, uint32_t requests)
{
    struct spdk_nvme_io_qpair_opts opts;

    spdk_nvme_ctrlr_get_default_io_qpair_opts(ctrlr, &opts, sizeof(opts));
    opts.io_queue_size = entries;
    opts.io_queue_requests = requests;
    opts.delay_cmd_submit = true;
    return spdk_nvme_ctrlr_alloc_io_qpair(ctrlr, &opts, sizeof(opts));
}

uint32_t xtent_spdk_status(const struct spdk_nvme_cpl *cpl)
{
    return (uint32_t)cpl->status.sct << 8 | cpl->status.sc;
}

bool xtent_spdk_is_disabled(struct spdk_nvme_ctrlr *ctrlr)
{
    union spdk_nvme_cc_register cc = spdk_nvme_ctrlr_get_regs_cc(ctrlr);
    union spdk_nvme_csts_register csts = spdk_nvme_ctrlr_get_regs_csts(ctrlr);

    /* All ones: the device does not answer. */
    if (cc.raw == UINT32_MAX || csts.raw == UINT32_MAX) {
        return false;
    }
    return cc.bits.en == 0 && csts.bits.rdy == 0;
}

bool xtent_spdk_is_fabrics(enum spdk_nvme_transport_type trtype)
{
    return spdk_nvme_trtype_is_fabrics(trtype);
}

struct discovery {
    struct spdk_nvmf_discovery_log_page *page;
    int rc;
    bool done;
    /* The waiter has given up: the last user frees it. */
    bool abandoned;
};

static void discovered(void *context, int rc, const struct spdk_nvme_cpl *cpl,
                       struct spdk_nvmf_discovery_log_page *page)
{
    struct discovery *discovery = context;

    if (rc == 0 && cpl != NULL && spdk_nvme_cpl_is_error(cpl)) {
        rc = -EIO;
    }
    if (discovery->abandoned) {
        free(page);
        free(discovery);
        return;
    }
    discovery->page = page;
    discovery->rc = rc;
    discovery->done = true;
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int xtent_spdk_discover(struct spdk_nvme_ctrlr *ctrlr, uint32_t timeout_ms,
                        void (*each)(void *context, const struct xtent_spdk_log_entry *entry), void *context)
{
    struct discovery *discovery = calloc(1, sizeof(*discovery));
    const uint64_t end = now_ms() + timeout_ms;
    uint64_t index;
    int rc;

    if (discovery == NULL) {
        return -ENOMEM;
    }
    rc = spdk_nvme_ctrlr_get_discovery_log_page(ctrlr, discovered, discovery);
    if (rc != 0) {
        free(discovery);
        return rc;
    }
    while (!discovery->done) {
        rc = spdk_nvme_ctrlr_process_admin_completions(ctrlr);
        if (!discovery->done && (rc < 0 || now_ms() > end)) {
            discovery->abandoned = true;
            return rc < 0 ? rc : -ETIMEDOUT;
        }
    }
    rc = discovery->rc;
    for (index = 0; rc == 0 && discovery->page != NULL && index < discovery->page->numrec; index++) {
        const struct spdk_nvmf_discovery_log_page_entry *from = &discovery->page->entries[index];
        struct xtent_spdk_log_entry entry;

        memset(&entry, 0, sizeof(entry));
        entry.trtype = from->trtype;
        entry.adrfam = from->adrfam;
        entry.subtype = from->subtype;
        copy_field(entry.traddr, from->traddr, sizeof(from->traddr));
        copy_field(entry.trsvcid, from->trsvcid, sizeof(from->trsvcid));
        copy_field(entry.subnqn, from->subnqn, sizeof(from->subnqn));
        each(context, &entry);
    }
    free(discovery->page);
    free(discovery);
    return rc;
}

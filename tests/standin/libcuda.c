/* A stand-in for NVIDIA's driver library, libcuda.so.1, for tests on machines without a GPU.
 *
 * It keeps the driver's rules with the means of Linux, so that what breaks them fails here as it
 * would there: physical pages are memfds, mapping one under an address is mmap, so that two ranges
 * may show the same page, and one that is unmapped or has no access cannot be touched. Streams are
 * as lazy as the driver may be: what is enqueued happens when somebody waits for it, and not
 * before, so that a missing wait shows. A copy to or from an address that is not mapped is
 * CUDA_ERROR_ILLEGAL_ADDRESS, and from then on so is every call, as on a real device.
 *
 * Only what the product calls is there; every other entry point that pycuda or cuda-bindings link
 * to answers CUDA_ERROR_NOT_SUPPORTED. `standin_*` is for tests: to make calls fail, and to count.
 *
 * Environment, for processes that a test starts: STANDIN_DEVICES (1), STANDIN_TOTAL_MB of each
 * (4096), STANDIN_CORRUPT (as standin_corrupt), STANDIN_DEATH: a file that may hold the name of a
 * call. The next process that makes it, or where it is empty any, removes the file, and its device
 * breaks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
typedef unsigned long long flags64;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ECC_UNCORRECTABLE = 214, INVALID_HANDLE = 400,
    NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
};
enum { GRANULARITY = 2 << 20, MAX_DEVICES = 8, MAX_MAPPINGS = 65536, MAX_RANGES = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static int sticky;  /* once set, what every call answers */
static const char *death; /* STANDIN_DEATH */
static long copies_until_corrupt = -1; /* into pages; -1: none goes wrong */

/* --- what tests ask for ------------------------------------------------------------------- */

enum { MAX_NAMES = 128 };
static struct { const char *name; int code; int skip; int times; long calls; } calls[MAX_NAMES];

static int entry_of(const char *name)
{
    int i = 0;
    while (i < MAX_NAMES - 1 && calls[i].name && strcmp(calls[i].name, name))
        i++;
    if (!calls[i].name)
        calls[i].name = strdup(name);
    return i;
}

/* After `skip` more calls of this name, the next `times` answer `code` and do nothing. */
void standin_fail(const char *name, int code, int skip, int times)
{
    pthread_mutex_lock(&lock);
    int i = entry_of(name);
    calls[i].code = code;
    calls[i].skip = skip;
    calls[i].times = times;
    pthread_mutex_unlock(&lock);
}

long standin_calls(const char *name)
{
    pthread_mutex_lock(&lock);
    long number = calls[entry_of(name)].calls;
    pthread_mutex_unlock(&lock);
    return number;
}

/* Forget every failure asked for, and that the device is dead. */
void standin_heal(void)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_NAMES; i++)
        calls[i].times = 0;
    copies_until_corrupt = -1;
    sticky = 0;
    pthread_mutex_unlock(&lock);
}

static void forget_what_is_enqueued(void);

/* The device breaks; what was enqueued never happens. */
void standin_die(int code)
{
    pthread_mutex_lock(&lock);
    sticky = code;
    forget_what_is_enqueued();
    pthread_mutex_unlock(&lock);
}

/* After `skip` more copies that streams do into pages, one arrives with a wrong byte: the highest of
 * its first float, so that a sum shows it. */
void standin_corrupt(long skip) { copies_until_corrupt = skip; }

static int is_deadly(const char *name)
{
    FILE *file = fopen(death, "r");
    if (!file)
        return 0;
    char deadly[64] = "";
    size_t length = fread(deadly, 1, sizeof deadly - 1, file);
    fclose(file);
    return (!length || !strcmp(deadly, name)) && !unlink(death);
}

static CUresult called(const char *name)
{
    pthread_mutex_lock(&lock);
    if (death && is_deadly(name)) {
        sticky = ECC_UNCORRECTABLE;
        forget_what_is_enqueued();
    }
    int i = entry_of(name), code = sticky;
    calls[i].calls++;
    if (!code && calls[i].times > 0) {
        if (calls[i].skip > 0) {
            calls[i].skip--;
        } else {
            calls[i].times--;
            code = calls[i].code;
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}

#define CALLED() do { CUresult code_ = called(__func__); if (code_) return code_; } while (0)

/* --- devices and contexts ------------------------------------------------------------------ */

struct device { int retained; size_t used; };
static struct device devices[MAX_DEVICES];
static int is_initialised;
static _Thread_local struct device *stack[1024];
static _Thread_local int depth;

static long setting(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static int num_devices(void) { return (int)setting("STANDIN_DEVICES", 1); }
static size_t total_bytes(void) { return (size_t)setting("STANDIN_TOTAL_MB", 4096) << 20; }
static struct device *current(void) { return depth ? stack[depth - 1] : NULL; }

CUresult cuInit(unsigned flags)
{
    (void)flags;
    CALLED();
    if (!is_initialised)
        copies_until_corrupt = setting("STANDIN_CORRUPT", -1);
    death = getenv("STANDIN_DEATH");
    is_initialised = 1;
    return num_devices() ? SUCCESS : NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version) { CALLED(); *version = 13000; return SUCCESS; }
CUresult cuDeviceGetCount(int *count) { CALLED(); *count = num_devices(); return SUCCESS; }

CUresult cuDeviceGet(int *device, int ordinal)
{
    CALLED();
    if (!is_initialised)
        return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= num_devices())
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, int device)
{
    CALLED();
    (void)device; /* all of one kind, as in a real machine with several */
    snprintf(name, (size_t)size, "Stand-in");
    return SUCCESS;
}

CUresult cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
    CALLED();
    memset(uuid, device + 1, 16);
    return SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *text, int size, int device)
{
    CALLED();
    snprintf(text, (size_t)size, "0000:%02x:00.0", device + 1);
    return SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device)
{
    CALLED();
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; /* compute capability 9.0 */
    return SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, int device)
{
    CALLED();
    (void)device;
    *major = 9;
    *minor = 0;
    return SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    CALLED();
    (void)device;
    *bytes = total_bytes();
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(void **context, int device)
{
    CALLED();
    if (device < 0 || device >= num_devices())
        return INVALID_DEVICE;
    devices[device].retained++;
    *context = &devices[device];
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(int device)
{
    CALLED();
    if (devices[device].retained < 1)
        return INVALID_CONTEXT;
    devices[device].retained--;
    return SUCCESS;
}

CUresult cuCtxSetCurrent(void *context)
{
    CALLED();
    if (!depth)
        depth = 1;
    stack[depth - 1] = context;
    return SUCCESS;
}

CUresult cuCtxGetCurrent(void **context) { CALLED(); *context = current(); return SUCCESS; }

CUresult cuCtxPushCurrent_v2(void *context)
{
    CALLED();
    if (depth == 1024)
        return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}

CUresult cuCtxPopCurrent_v2(void **context)
{
    CALLED();
    if (!depth)
        return INVALID_CONTEXT;
    depth--;
    if (context)
        *context = stack[depth];
    return SUCCESS;
}

CUresult cuCtxDetach(void *context) { CALLED(); (void)context; return SUCCESS; }

CUresult cuCtxGetDevice(int *device)
{
    CALLED();
    if (!current())
        return INVALID_CONTEXT;
    *device = (int)(current() - devices);
    return SUCCESS;
}

CUresult cuCtxGetApiVersion(void *context, unsigned *version)
{
    CALLED();
    (void)context;
    *version = 13000;
    return SUCCESS;
}

static const struct { CUresult code; const char *name; } names[] = {
    {SUCCESS, "CUDA_SUCCESS"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"}, {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"}, {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"}, {NOT_READY, "CUDA_ERROR_NOT_READY"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"}, {999, "CUDA_ERROR_UNKNOWN"},
};

CUresult cuGetErrorName(CUresult code, const char **name)
{
    *name = "CUDA_ERROR_UNKNOWN";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == code)
            *name = names[i].name;
    return SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text)
{
    cuGetErrorName(code, text);
    return SUCCESS;
}

/* --- memory: pages, address ranges, mappings ----------------------------------------------- */

struct page { int fd; size_t bytes; int num_mappings; int is_released; struct device *device; };
struct mapping { CUdeviceptr address; size_t bytes; struct page *page; int has_access; };
struct range { CUdeviceptr address; size_t bytes; struct device *device; };

static struct mapping mappings[MAX_MAPPINGS];
static int num_mappings;
static struct range reserved[MAX_RANGES], plain[MAX_RANGES];
static int num_reserved, num_plain;

static CUresult take(struct device *device, size_t bytes)
{
    if (!device || device->used + bytes > total_bytes())
        return device ? OUT_OF_MEMORY : INVALID_CONTEXT;
    device->used += bytes;
    return SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t *bytes, const void *properties, int option)
{
    CALLED();
    (void)properties, (void)option;
    *bytes = GRANULARITY;
    return SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    CALLED();
    if (!current())
        return INVALID_CONTEXT;
    *total = total_bytes();
    *free_bytes = *total - current()->used;
    return SUCCESS;
}

/* CUmemAllocationProp begins with type, handle types, location type, location id */
CUresult cuMemCreate(flags64 *handle, size_t bytes, const int *properties, flags64 flags)
{
    CALLED();
    (void)flags;
    if (!bytes || bytes % GRANULARITY)
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    struct device *device = &devices[properties[3]];
    CUresult code = take(device, bytes);
    pthread_mutex_unlock(&lock);
    if (code)
        return code;
    struct page *page = calloc(1, sizeof *page);
    *page = (struct page){memfd_create("gpu-page", MFD_CLOEXEC), bytes, 0, 0, device};
    if (page->fd < 0 || ftruncate(page->fd, (off_t)bytes))
        return OUT_OF_MEMORY;
    *handle = (flags64)(uintptr_t)page;
    return SUCCESS;
}

static void give_back(struct page *page)
{
    if (page->is_released && !page->num_mappings) {
        page->device->used -= page->bytes;
        close(page->fd);
        free(page);
    }
}

CUresult cuMemRelease(flags64 handle)
{
    CALLED();
    struct page *page = (struct page *)(uintptr_t)handle;
    pthread_mutex_lock(&lock);
    page->is_released = 1;
    give_back(page);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                             flags64 flags)
{
    CALLED();
    (void)hint, (void)flags;
    if (!bytes || bytes % GRANULARITY || num_reserved == MAX_RANGES)
        return INVALID_VALUE;
    if (alignment & (alignment - 1)) /* a power of two, or 0 */
        return INVALID_VALUE;
    if (alignment < GRANULARITY)
        alignment = GRANULARITY;
    char *whole = mmap(NULL, bytes + alignment, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED)
        return OUT_OF_MEMORY;
    uintptr_t begin = ((uintptr_t)whole + alignment - 1) / alignment * alignment;
    if (begin > (uintptr_t)whole)
        munmap(whole, begin - (uintptr_t)whole);
    munmap((void *)(begin + bytes), (uintptr_t)whole + alignment - begin);
    pthread_mutex_lock(&lock);
    reserved[num_reserved++] = (struct range){begin, bytes, NULL};
    pthread_mutex_unlock(&lock);
    *address = begin;
    return SUCCESS;
}

static int overlaps(CUdeviceptr a, size_t a_bytes, CUdeviceptr b, size_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes)
{
    CALLED();
    CUresult code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_mappings; i++)
        if (overlaps(address, bytes, mappings[i].address, mappings[i].bytes))
            goto out;
    for (int i = 0; i < num_reserved; i++)
        if (reserved[i].address == address && reserved[i].bytes == bytes) {
            reserved[i] = reserved[--num_reserved];
            munmap((void *)address, bytes);
            code = SUCCESS;
            break;
        }
out:
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, flags64 handle, flags64 flags)
{
    CALLED();
    (void)flags;
    struct page *page = (struct page *)(uintptr_t)handle;
    CUresult code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int is_inside = 0;
    for (int i = 0; i < num_reserved; i++)
        is_inside |= reserved[i].address <= address
                     && address + bytes <= reserved[i].address + reserved[i].bytes;
    for (int i = 0; i < num_mappings; i++)
        if (overlaps(address, bytes, mappings[i].address, mappings[i].bytes))
            is_inside = 0;
    if (is_inside && !offset && bytes == page->bytes && address % GRANULARITY == 0
        && num_mappings < MAX_MAPPINGS
        && mmap((void *)address, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, page->fd, 0)
               != MAP_FAILED) {
        mappings[num_mappings++] = (struct mapping){address, bytes, page, 0};
        page->num_mappings++;
        code = SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const void *access, size_t count)
{
    CALLED();
    (void)access;
    if (count != 1)
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    CUdeviceptr at = address;
    while (at < address + bytes) {
        int i = 0;
        while (i < num_mappings && mappings[i].address != at)
            i++;
        if (i == num_mappings)
            break;
        mappings[i].has_access = 1;
        at += mappings[i].bytes;
    }
    CUresult code = at == address + bytes
                            && !mprotect((void *)address, bytes, PROT_READ | PROT_WRITE)
                        ? SUCCESS : INVALID_VALUE;
    pthread_mutex_unlock(&lock);
    return code;
}

/* Exactly what was mapped by one call. */
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes)
{
    CALLED();
    CUresult code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_mappings; i++)
        if (mappings[i].address == address && mappings[i].bytes == bytes) {
            mmap((void *)address, bytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
            mappings[i].page->num_mappings--;
            give_back(mappings[i].page);
            mappings[i] = mappings[--num_mappings];
            code = SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    CALLED();
    pthread_mutex_lock(&lock);
    CUresult code = num_plain < MAX_RANGES && bytes ? take(current(), bytes) : INVALID_VALUE;
    if (!code) {
        void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        memset(memory, 0xA5, bytes); /* nobody may count on zeros */
        *address = (CUdeviceptr)(uintptr_t)memory;
        plain[num_plain++] = (struct range){*address, bytes, current()};
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static void run_all(void);

CUresult cuMemFree_v2(CUdeviceptr address)
{
    CALLED();
    run_all();
    CUresult code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_plain; i++)
        if (plain[i].address == address) {
            plain[i].device->used -= plain[i].bytes;
            free((void *)(uintptr_t)address);
            plain[i] = plain[--num_plain];
            code = SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    CALLED();
    (void)flags;
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *memory ? SUCCESS : OUT_OF_MEMORY;
}

CUresult cuMemAllocHost_v2(void **memory, size_t bytes)
{
    CALLED();
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *memory ? SUCCESS : OUT_OF_MEMORY;
}

/* Freeing waits for the device, or a copy would still write there. */
CUresult cuMemFreeHost(void *memory) { CALLED(); run_all(); free(memory); return SUCCESS; }

CUresult cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags)
{
    CALLED();
    (void)memory, (void)bytes, (void)flags;
    return SUCCESS;
}

CUresult cuMemHostUnregister(void *memory) { CALLED(); (void)memory; return SUCCESS; }

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *memory, unsigned flags)
{
    CALLED();
    (void)flags;
    *address = (CUdeviceptr)(uintptr_t)memory;
    return SUCCESS;
}

static int is_reserved(CUdeviceptr address, size_t bytes)
{
    int is_ours = 0;
    for (int i = 0; i < num_reserved; i++)
        is_ours |= overlaps(address, bytes, reserved[i].address, reserved[i].bytes);
    return is_ours;
}

/* Whether all of it may be touched: in a mapping with access, or no address of reserved ranges. */
static int is_accessible(CUdeviceptr address, size_t bytes)
{
    if (!is_reserved(address, bytes))
        return 1;
    size_t found = 0;
    for (int i = 0; i < num_mappings; i++) {
        if (!mappings[i].has_access
            || !overlaps(address, bytes, mappings[i].address, mappings[i].bytes))
            continue;
        CUdeviceptr end = mappings[i].address + mappings[i].bytes;
        CUdeviceptr from = address > mappings[i].address ? address : mappings[i].address;
        found += (end < address + bytes ? end : address + bytes) - from;
    }
    return found == bytes;
}

static CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    pthread_mutex_lock(&lock);
    if (!is_accessible(to, bytes) || !is_accessible(from, bytes))
        sticky = ILLEGAL_ADDRESS;
    int code = sticky;
    pthread_mutex_unlock(&lock);
    if (!code)
        memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return code;
}

/* --- streams, events, graphs: lazy ---------------------------------------------------------- */

enum kind { COPY, FILL, CALL, RECORD, WAIT };
struct event { struct stream *stream; size_t position; struct timespec at; };
struct op {
    enum kind kind;
    CUdeviceptr to, from;
    size_t bytes;
    void (*function)(void *);
    void *argument;
    struct event *event;
    struct stream *stream; /* WAIT: the event's, when the wait was enqueued */
    size_t position;
};
struct stream {
    struct op *ops;
    size_t num, capacity, num_done, captured_from;
    int is_busy, is_capturing;
};
static struct stream default_stream, *streams[1024];
static int num_streams;

static struct stream *stream_of(void *handle) { return handle ? handle : &default_stream; }

static void run(struct stream *stream, size_t position);

static void push(struct stream *stream, struct op op)
{
    if (stream->num == stream->capacity) {
        stream->capacity = stream->capacity ? 2 * stream->capacity : 64;
        stream->ops = realloc(stream->ops, stream->capacity * sizeof op);
    }
    stream->ops[stream->num++] = op;
}

static CUresult enqueue(struct stream *stream, struct op op)
{
    pthread_mutex_lock(&lock);
    push(stream, op);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

static void copy_later(struct op *op)
{
    if (copy(op->to, op->from, op->bytes) || copies_until_corrupt < 0)
        return;
    pthread_mutex_lock(&lock);
    if (is_reserved(op->to, op->bytes) && copies_until_corrupt-- == 0)
        ((unsigned char *)(uintptr_t)op->to)[3] ^= 0xFF;
    pthread_mutex_unlock(&lock);
}

static void perform(struct op *op)
{
    switch (op->kind) {
    case COPY: copy_later(op); break;
    case FILL: memset((void *)(uintptr_t)op->to, (int)op->from, op->bytes); break;
    case CALL: if (!sticky) op->function(op->argument); break;
    case RECORD: clock_gettime(CLOCK_MONOTONIC, &op->event->at); break;
    case WAIT: run(op->stream, op->position); break;
    }
}

/* Do what was enqueued before `position`, unless another thread does it already. */
static void run(struct stream *stream, size_t position)
{
    pthread_mutex_lock(&lock);
    while (stream->num_done < position) {
        if (stream->is_busy) {
            pthread_cond_wait(&moved, &lock);
            continue;
        }
        struct op op = stream->ops[stream->num_done];
        stream->is_busy = 1;
        pthread_mutex_unlock(&lock);
        perform(&op); /* unlocked: a function may call Python, or enqueue */
        pthread_mutex_lock(&lock);
        stream->is_busy = 0;
        if (stream->num_done < stream->num) /* else it was forgotten meanwhile */
            stream->num_done++;
        pthread_cond_broadcast(&moved);
    }
    pthread_mutex_unlock(&lock);
}

static void run_all(void)
{
    run(&default_stream, default_stream.num);
    for (int i = 0; i < num_streams; i++)
        run(streams[i], streams[i]->num);
}

static void forget_what_is_enqueued(void)
{
    default_stream.num_done = default_stream.num;
    for (int i = 0; i < num_streams; i++)
        streams[i]->num_done = streams[i]->num;
}

CUresult cuStreamCreate(void **handle, unsigned flags)
{
    CALLED();
    (void)flags;
    pthread_mutex_lock(&lock);
    *handle = streams[num_streams++] = calloc(1, sizeof(struct stream));
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuStreamCreateWithPriority(void **handle, unsigned flags, int priority)
{
    (void)priority;
    return cuStreamCreate(handle, flags);
}

CUresult cuStreamDestroy_v2(void *handle)
{
    CALLED();
    run(handle, ((struct stream *)handle)->num);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_streams; i++)
        if (streams[i] == handle)
            streams[i] = streams[--num_streams];
    pthread_mutex_unlock(&lock);
    return SUCCESS; /* events may still point to it */
}

CUresult cuStreamSynchronize(void *handle)
{
    CALLED();
    run(stream_of(handle), stream_of(handle)->num);
    return sticky;
}

CUresult cuStreamQuery(void *handle)
{
    CALLED();
    return stream_of(handle)->num_done == stream_of(handle)->num ? SUCCESS : NOT_READY;
}

CUresult cuCtxSynchronize(void)
{
    CALLED();
    run(&default_stream, default_stream.num);
    for (int i = 0; i < num_streams; i++)
        run(streams[i], streams[i]->num);
    return sticky;
}

CUresult cuEventCreate(void **handle, unsigned flags)
{
    CALLED();
    (void)flags;
    *handle = calloc(1, sizeof(struct event));
    return SUCCESS;
}

CUresult cuEventDestroy_v2(void *handle) { CALLED(); (void)handle; return SUCCESS; }

CUresult cuEventRecord(void *handle, void *stream_handle)
{
    CALLED();
    struct event *event = handle;
    struct stream *stream = stream_of(stream_handle);
    pthread_mutex_lock(&lock);
    push(stream, (struct op){.kind = RECORD, .event = event});
    event->stream = stream;
    event->position = stream->num;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuEventQuery(void *handle)
{
    CALLED();
    struct event *event = handle;
    return !event->stream || event->stream->num_done >= event->position ? SUCCESS : NOT_READY;
}

CUresult cuEventSynchronize(void *handle)
{
    CALLED();
    struct event *event = handle;
    if (event->stream)
        run(event->stream, event->position);
    return sticky;
}

CUresult cuEventElapsedTime_v2(float *milliseconds, void *begin_handle, void *end_handle)
{
    CALLED();
    struct event *begin = begin_handle, *end = end_handle;
    if (!begin->stream || !end->stream)
        return INVALID_HANDLE;
    if (end->stream->num_done < end->position || begin->stream->num_done < begin->position)
        return NOT_READY;
    *milliseconds = (float)((double)(end->at.tv_sec - begin->at.tv_sec) * 1e3
                            + (double)(end->at.tv_nsec - begin->at.tv_nsec) / 1e6);
    return SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, void *begin, void *end)
{
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}

CUresult cuStreamWaitEvent(void *handle, void *event_handle, unsigned flags)
{
    CALLED();
    (void)flags;
    struct event *event = event_handle;
    if (!event->stream)
        return SUCCESS;
    return enqueue(stream_of(handle), (struct op){.kind = WAIT, .stream = event->stream,
                                                  .position = event->position});
}

CUresult cuLaunchHostFunc(void *handle, void (*function)(void *), void *argument)
{
    CALLED();
    return enqueue(stream_of(handle),
                   (struct op){.kind = CALL, .function = function, .argument = argument});
}

static CUresult enqueue_copy(void *handle, CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    return enqueue(stream_of(handle),
                   (struct op){.kind = COPY, .to = to, .from = from, .bytes = bytes});
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream)
{
    CALLED();
    return enqueue_copy(stream, to, (CUdeviceptr)(uintptr_t)from, bytes);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream)
{
    CALLED();
    return enqueue_copy(stream, (CUdeviceptr)(uintptr_t)to, from, bytes);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream)
{
    CALLED();
    return enqueue_copy(stream, to, from, bytes);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
    CALLED();
    return copy(to, (CUdeviceptr)(uintptr_t)from, bytes);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    CALLED();
    return copy((CUdeviceptr)(uintptr_t)to, from, bytes);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    CALLED();
    return copy(to, from, bytes);
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes)
{
    CALLED();
    memset((void *)(uintptr_t)to, value, bytes);
    return SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, void *stream)
{
    CALLED();
    return enqueue(stream_of(stream),
                   (struct op){.kind = FILL, .to = to, .from = value, .bytes = bytes});
}

/* Any kernel of one parameter of any PTX: it does nothing, when it is waited for. */
static void do_nothing(void *argument) { (void)argument; }

CUresult cuModuleLoadData(void **module, const void *image)
{
    CALLED();
    *module = (void *)(uintptr_t)strdup(image);
    return strstr(image, ".entry") ? SUCCESS : INVALID_VALUE;
}

CUresult cuModuleGetFunction(void **function, void *module, const char *name)
{
    CALLED();
    *function = module;
    return strstr(module, name) ? SUCCESS : NOT_FOUND;
}

CUresult cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, void *stream, void **parameters,
                        void **extra)
{
    CALLED();
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared;
    (void)extra;
    if (!*(uint64_t *)parameters[0])
        return INVALID_VALUE;
    return enqueue(stream_of(stream), (struct op){.kind = CALL, .function = do_nothing});
}

/* A graph is what was enqueued while its stream was captured, which then did not happen. */
struct graph { struct op *ops; size_t num; };

CUresult cuStreamBeginCapture_v2(void *handle, int mode)
{
    CALLED();
    (void)mode;
    struct stream *stream = handle;
    if (!stream || stream->is_capturing)
        return CAPTURE_UNSUPPORTED;
    run(stream, stream->num);
    pthread_mutex_lock(&lock);
    stream->is_capturing = 1;
    stream->captured_from = stream->num;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuStreamEndCapture(void *handle, void **graph_handle)
{
    CALLED();
    struct stream *stream = handle;
    pthread_mutex_lock(&lock);
    CUresult code = stream->is_capturing ? SUCCESS : CAPTURE_UNSUPPORTED;
    if (!code) {
        struct graph *graph = calloc(1, sizeof *graph);
        graph->num = stream->num - stream->captured_from;
        graph->ops = malloc((graph->num + 1) * sizeof *graph->ops);
        memcpy(graph->ops, stream->ops + stream->captured_from, graph->num * sizeof *graph->ops);
        stream->num = stream->captured_from;
        stream->is_capturing = 0;
        *graph_handle = graph;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult cuStreamIsCapturing(void *handle, int *status)
{
    CALLED();
    *status = stream_of(handle)->is_capturing;
    return SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(void **executable, void *graph, flags64 flags)
{
    CALLED();
    (void)flags;
    *executable = graph;
    return SUCCESS;
}

CUresult cuGraphLaunch(void *executable, void *handle)
{
    CALLED();
    struct graph *graph = executable;
    for (size_t i = 0; i < graph->num; i++)
        enqueue(stream_of(handle), graph->ops[i]);
    return SUCCESS;
}

CUresult cuGraphUpload(void *executable, void *handle) { CALLED(); (void)executable, (void)handle; return SUCCESS; }
CUresult cuGraphGetNodes(void *graph, void **nodes, size_t *num_nodes)
{
    CALLED();
    if (nodes)
        return NOT_SUPPORTED;
    *num_nodes = ((struct graph *)graph)->num;
    return SUCCESS;
}

CUresult cuGraphDestroy(void *graph) { CALLED(); (void)graph; return SUCCESS; }
CUresult cuGraphExecDestroy(void *graph) { CALLED(); (void)graph; return SUCCESS; }

/* --- what pycuda links to and nobody here calls ---------------------------------------------- */

#define N(name) CUresult name(void) { return NOT_SUPPORTED; }
N(cuArray3DCreate_v2) N(cuArray3DGetDescriptor_v2) N(cuArrayCreate_v2) N(cuArrayDestroy)
N(cuArrayGetDescriptor_v2) N(cuCtxAttach) N(cuCtxCreate_v4)
N(cuCtxDisablePeerAccess) N(cuCtxEnablePeerAccess) N(cuCtxGetCacheConfig) N(cuCtxGetLimit)
N(cuCtxGetSharedMemConfig) N(cuCtxSetCacheConfig) N(cuCtxSetLimit) N(cuCtxSetSharedMemConfig)
N(cuDeviceCanAccessPeer) N(cuDeviceGetByPCIBusId) N(cuFuncGetAttribute) N(cuFuncSetAttribute)
N(cuFuncSetBlockShape) N(cuFuncSetCacheConfig) N(cuFuncSetSharedSize) N(cuIpcCloseMemHandle)
N(cuIpcGetEventHandle) N(cuIpcGetMemHandle) N(cuIpcOpenEventHandle) N(cuIpcOpenMemHandle_v2)
N(cuLaunch) N(cuLaunchGrid) N(cuLaunchGridAsync) N(cuLinkAddData_v2)
N(cuLinkAddFile_v2) N(cuLinkComplete) N(cuLinkCreate_v2) N(cuLinkDestroy) N(cuMemAllocManaged)
N(cuMemAllocPitch_v2) N(cuMemGetAddressRange_v2) N(cuMemHostGetFlags) N(cuMemcpy2DAsync_v2)
N(cuMemcpy2DUnaligned_v2) N(cuMemcpy2D_v2) N(cuMemcpy3DAsync_v2) N(cuMemcpy3DPeer)
N(cuMemcpy3DPeerAsync) N(cuMemcpy3D_v2) N(cuMemcpyAtoA_v2) N(cuMemcpyAtoD_v2) N(cuMemcpyAtoH_v2)
N(cuMemcpyDtoA_v2) N(cuMemcpyHtoA_v2) N(cuMemcpyPeer) N(cuMemcpyPeerAsync) N(cuMemsetD16Async)
N(cuMemsetD16_v2) N(cuMemsetD2D16Async) N(cuMemsetD2D16_v2) N(cuMemsetD2D32Async)
N(cuMemsetD2D32_v2) N(cuMemsetD2D8Async) N(cuMemsetD2D8_v2) N(cuMemsetD32Async) N(cuMemsetD32_v2)
N(cuModuleGetGlobal_v2) N(cuModuleGetSurfRef) N(cuModuleGetTexRef)
N(cuModuleLoad) N(cuModuleLoadDataEx) N(cuModuleUnload) N(cuParamSetSize)
N(cuParamSetTexRef) N(cuParamSetf) N(cuParamSeti) N(cuParamSetv) N(cuProfilerInitialize)
N(cuProfilerStart) N(cuProfilerStop) N(cuStreamAttachMemAsync) N(cuSurfRefGetArray)
N(cuSurfRefSetArray) N(cuTexRefCreate) N(cuTexRefDestroy) N(cuTexRefGetAddressMode)
N(cuTexRefGetAddress_v2) N(cuTexRefGetArray) N(cuTexRefGetFilterMode) N(cuTexRefGetFlags)
N(cuTexRefGetFormat) N(cuTexRefSetAddress2D_v3) N(cuTexRefSetAddressMode) N(cuTexRefSetAddress_v2)
N(cuTexRefSetArray) N(cuTexRefSetFilterMode) N(cuTexRefSetFlags) N(cuTexRefSetFormat)

/* --- how cuda-bindings finds all of this ---------------------------------------------------- */

static CUresult not_supported(void) { return NOT_SUPPORTED; }

CUresult cuGetProcAddress_v2(const char *name, void **function, int version, flags64 flags,
                             int *status)
{
    (void)version, (void)flags;
    Dl_info self;
    dladdr((void *)cuGetProcAddress_v2, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    static const char *const suffixes[] = {"_v4", "_v3", "_v2", "", "WithFlags"};
    char symbol[128];
    *function = NULL;
    for (size_t i = 0; !*function && i < sizeof suffixes / sizeof *suffixes; i++) {
        snprintf(symbol, sizeof symbol, "%s%s", name, suffixes[i]);
        *function = dlsym(library, symbol);
    }
    if (!*function)
        *function = (void *)not_supported;
    if (status)
        *status = 0;
    return SUCCESS;
}

CUresult cuGetProcAddress(const char *name, void **function, int version, flags64 flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

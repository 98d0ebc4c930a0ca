/*
 * A stand-in for the CANN driver (libascendcl and its companions): NPU memory is host memory.
 *
 * It carries exactly what torch_npu links against or looks up on its way to a tensor on "npu:0".
 * Three rules keep it honest:
 *   - what torch_npu needs an answer to (memory, devices, streams, events) is answered;
 *   - what may be ignored without changing a result (names, logs, profiling marks) does nothing;
 *   - whatever would compute, launch or map device memory returns an error, so that a kernel which
 *     the Python side did not replace fails instead of leaving garbage in its output.
 *
 * Environment: NPU_SIM_DEVICES (number of cards, default 0), NPU_SIM_SOC (default Ascend910B1),
 * ASCEND_RT_VISIBLE_DEVICES as CANN reads it (an ascending list of card numbers).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    ERROR_INVALID_DEVICE = 107001,
    ERROR_FEATURE_UNSUPPORTED = 207000,
    ERROR_BAD_ALLOC = 207001,
    ERROR_NO_DEVICE = 507899,
    ERROR_NO_KERNEL = 500002,
};

/* ---- Cards ---------------------------------------------------------------------------------- */

static _Thread_local int current_device = 0;

/* Cards named by ASCEND_RT_VISIBLE_DEVICES: the list ends at the first character that is neither digit
 * nor comma, or card that is not there; one that does not ascend shows none. */
static int count_visible(const char *list, int cards) {
    int count = 0, previous = -1;
    while (*list >= '0' && *list <= '9') {
        char *end;
        long card = strtol(list, &end, 10);
        if (card <= previous) return 0;
        if (card >= cards) break;
        previous = (int)card;
        count++;
        if (*end != ',') break;
        list = end + 1;
    }
    return count;
}

static int device_count(void) {
    const char *cards = getenv("NPU_SIM_DEVICES");
    const char *visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
    int count = cards ? atoi(cards) : 0;
    return visible ? count_visible(visible, count) : count;
}

int aclrtGetDeviceCount(uint32_t *count) {
    *count = (uint32_t)device_count();
    return *count ? SUCCESS : ERROR_NO_DEVICE;
}

int aclrtSetDevice(int device) {
    if (device < 0 || device >= device_count()) return ERROR_INVALID_DEVICE;
    current_device = device;
    return SUCCESS;
}

int aclrtGetDevice(int *device) {
    *device = current_device;
    return SUCCESS;
}

const char *aclrtGetSocName(void) {
    const char *name = getenv("NPU_SIM_SOC");
    return name ? name : "Ascend910B1";
}

const char *aclGetRecentErrMsg(void) { return "simulated driver: there is no NPU here"; }

int aclrtGetCurrentContext(void **context) {
    static int contexts[64];
    *context = &contexts[current_device % 64];
    return SUCCESS;
}

int aclGetDeviceCapability(uint32_t device, int type, int64_t *value) {
    *value = 0;
    return SUCCESS;
}

int aclrtDeviceCanAccessPeer(int *can_access, int device, int peer) {
    *can_access = 0;
    return SUCCESS;
}

/* 1 = inf and nan are kept (A2: 910B1…, A3: 910_93…); 0 = results saturate (910A and its like). */
int aclrtGetDeviceSatMode(int *mode) {
    const char *chip = aclrtGetSocName() + strlen("Ascend910");
    *mode = chip[0] == '_' || (chip[0] == 'B' && chip[1]);
    return SUCCESS;
}

/* ---- Version of CANN, as torch_npu.npu.utils.get_cann_version asks for it --------------------- */

struct package_version {
    char version[128], major[64], minor[64], release[64], patch[64], reserved[128];
};

int aclsysGetCANNVersion(int package, struct package_version *answer) {
    memset(answer, 0, sizeof *answer);
    strcpy(answer->version, CANN_VERSION);
    return SUCCESS;
}

int halGetAPIVersion(int *version) {
    *version = 0;
    return SUCCESS;
}

int aclsysGetVersionStr(const char *package, char *answer) {
    strcpy(answer, CANN_VERSION);
    return SUCCESS;
}

/* ---- Memory --------------------------------------------------------------------------------- */

static int allocate(void **pointer, size_t bytes, size_t alignment) {
    *pointer = aligned_alloc(alignment, (bytes / alignment + 2) * alignment);
    return *pointer ? SUCCESS : ERROR_BAD_ALLOC;
}

static int release(void *pointer) {
    free(pointer);
    return SUCCESS;
}

int aclrtMalloc(void **pointer, size_t bytes, int policy) { return allocate(pointer, bytes, 512); }
int aclrtMallocAlign32(void **pointer, size_t bytes, int policy) {
    return allocate(pointer, bytes, 512);
}
int aclrtMallocHost(void **pointer, size_t bytes) { return allocate(pointer, bytes, 64); }
int aclrtFree(void *pointer) { return release(pointer); }
int aclrtFreeHost(void *pointer) { return release(pointer); }

int aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int kind) {
    memcpy(to, from, bytes);
    return SUCCESS;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *stream) {
    memcpy(to, from, bytes);
    return SUCCESS;
}
int aclrtMemset(void *to, size_t room, int value, size_t bytes) {
    memset(to, value, bytes);
    return SUCCESS;
}

int aclrtGetMemInfo(int attribute, size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = *total_bytes = (size_t)8 << 30;
    return SUCCESS;
}

/* ---- Streams and events: everything is done when the call returns ---------------------------- */

static int make_handle(void **handle) {
    *handle = calloc(1, 64);
    return *handle ? SUCCESS : ERROR_BAD_ALLOC;
}

int aclrtCreateContext(void **context, int device) { return make_handle(context); }
int aclrtCreateStream(void **stream) { return make_handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flag) {
    return make_handle(stream);
}
int aclrtCreateEvent(void **event) { return make_handle(event); }
int aclrtCreateEventWithFlag(void **event, uint32_t flag) { return make_handle(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { return make_handle(event); }
int aclrtDestroyEvent(void *event) { return release(event); }
int aclrtDestroyStream(void *stream) { return release(stream); }
int aclrtDestroyStreamForce(void *stream) { return release(stream); }

int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = 0;
    return SUCCESS;
}
int aclrtQueryEventStatus(void *event, int *status) {
    *status = 1; /* complete */
    return SUCCESS;
}
int aclrtQueryEventWaitStatus(void *event, int *status) {
    *status = 1; /* complete */
    return SUCCESS;
}
int aclrtStreamQuery(void *stream, int *status) {
    *status = 0; /* complete */
    return SUCCESS;
}
int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) {
    *flag = 1;
    return SUCCESS;
}
int aclrtGetSysParamOpt(int option, int64_t *value) {
    *value = 0;
    return SUCCESS;
}

/* ---- Profiler: it starts, sees no device, and stops ------------------------------------------ */

void *aclprofCreateConfig() {
    void *config = NULL;
    make_handle(&config);
    return config;
}
int aclprofDestroyConfig(void *config) { return release(config); }

/* ---- Calls that may do nothing -------------------------------------------------------------- */

#define NOTHING_TO_DO(X)                                                                           \
    X(aclInit) X(aclFinalize) X(aclrtResetDevice) X(aclrtSetCurrentContext) X(aclrtProcessReport)  \
    X(aclrtRecordEvent) X(aclrtResetEvent) X(aclrtStreamWaitEvent) X(aclrtSynchronizeEvent)        \
    X(aclrtSynchronizeStream) X(aclrtSynchronizeStreamWithTimeout) X(aclrtSynchronizeDevice)       \
    X(aclrtSynchronizeDeviceWithTimeout) X(aclrtSetDeviceSatMode) X(aclrtSetSysParamOpt)           \
    X(aclrtCtxSetSysParamOpt) X(aclSetCompileopt) X(aclrtSetStreamOverflowSwitch) X(aclrtSetOpExecuteTimeOut)                      \
    X(aclrtDeviceEnablePeerAccess) X(aclAppLog) X(aclmdlInitDump) X(aclmdlSetDump)                 \
    X(aclmdlFinalizeDump) X(MsprofGetHashId) X(MsprofRegisterCallback) X(MsprofReportApi)          \
    X(MsprofReportAdditionalInfo) X(MsprofReportCompactInfo) X(MsprofSysCycleTime)                 \
    X(aclprofInit) X(aclprofStart) X(aclprofStop) X(aclprofFinalize) X(aclprofSetConfig)           \
    X(aclprofWarmup) X(aclprofRegisterDeviceCallback) X(HcclSetConfig)
#define DO_NOTHING(name) \
    int name() { return SUCCESS; }
NOTHING_TO_DO(DO_NOTHING)

/* Descriptions of an operator: only ever read by aclopCompileAndExecute, which refuses. */
#define DESCRIPTIONS(X)                                                                            \
    X(aclCreateDataBuffer) X(aclDestroyDataBuffer) X(aclCreateTensorDesc) X(aclDestroyTensorDesc)  \
    X(aclGetTensorDescDimV2) X(aclGetTensorDescFormat) X(aclGetTensorDescNumDims)                  \
    X(aclGetTensorDescType) X(aclSetTensorDescName) X(aclSetTensorFormat) X(aclSetTensorPlaceMent) \
    X(aclSetTensorShape) X(aclopCreateAttr) X(aclopDestroyAttr) X(aclopSetAttrBool)                \
    X(aclopSetAttrDataType) X(aclopSetAttrFloat) X(aclopSetAttrInt) X(aclopSetAttrListBool)        \
    X(aclopSetAttrListFloat) X(aclopSetAttrListInt) X(aclopSetAttrListListInt)                     \
    X(aclopSetAttrString)
#define NO_DESCRIPTION(name) \
    void *name() { return 0; }
DESCRIPTIONS(NO_DESCRIPTION)

/* ---- Calls that must not pretend ------------------------------------------------------------ */

#define UNSUPPORTED(X)                                                                             \
    X(aclrtBinaryLoadFromData) X(aclrtBinaryGetFunction) X(aclrtGetFunctionAddr)                   \
    X(rtDevBinaryRegister) X(rtFunctionRegister) X(rtKernelLaunch) X(rtGetC2cCtrlAddr)             \
    X(aclrtMallocPhysical) X(aclrtFreePhysical) X(aclrtMapMem) X(aclrtUnmapMem)                    \
    X(aclrtReserveMemAddress) X(aclrtReleaseMemAddress) X(aclrtMemExportToShareableHandle)         \
    X(aclrtMemImportFromShareableHandle) X(aclrtMemSetPidToShareableHandle)                        \
    X(aclrtDeviceGetBareTgid)                                                                      \
    X(HcclAllGather) X(HcclAllReduce) X(HcclBroadcast) X(HcclCommDestroy) X(HcclCommInitAll)       \
    X(HcclCommInitRootInfo) X(HcclGetRootInfo) X(HcclRecv) X(HcclReduceScatter) X(HcclSend)
#define REFUSE(name) \
    int name() { return ERROR_FEATURE_UNSUPPORTED; }
UNSUPPORTED(REFUSE)

int aclopCompileAndExecute() { return ERROR_NO_KERNEL; }

// A graphics device for tests, as FFmpeg sees one through CUDA's driver and its video decoder: it takes H.264
// and no other codec, and the processor does its work. Linked once, it is both libraries.
//
// HEADERS: the sequence and picture parameters of what will come, since a driver gets them taken apart.
// LASTS: how many pictures it decodes. END: what it does after that.

#include <libavcodec/avcodec.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DONE = 0, FAILED = 999, H264 = 4, YUV420 = 1, ON_HOST = 1, SURFACES = 64 };

typedef unsigned long long Address;

// What is used of CUDA's structures, from their beginning.
typedef struct {
    int codec, chroma;
    unsigned bit_depth_minus_8, reserved[3];
    unsigned char is_supported, engines;
    unsigned short output_formats;
    unsigned max_width, max_height, max_macroblocks;
} Caps;

typedef struct {
    unsigned long width, height;
} Format;

typedef struct {
    int width_mbs, height_mbs, surface, is_field, is_bottom, is_second;
    unsigned length;
    const unsigned char *bytes;
} Picture;

typedef struct {
    size_t x, y;
    int memory;
    char *host;
    Address device;
    void *array;
    size_t pitch;
} Place;

typedef struct {
    Place from, to;
    size_t width, height;
} Copy;

typedef struct {
    size_t width, height;
    AVCodecContext *context;
    AVPacket *packet;
    AVFrame *frame;
    unsigned char *surfaces[SURFACES];
} Decoder;

static const unsigned char headers[] = HEADERS;
static long decoded;

int cuDeviceGetCount(int *count) { return *count = 1, DONE; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0, ordinal ? FAILED : DONE; }
// What is asked for is how lines are aligned.
int cuDeviceGetAttribute(int *value, int which, int device) { return *value = 256, DONE; }
int cuCtxCreate_v2(void **context, unsigned flags, int device) { return *context = &decoded, DONE; }
int cuCtxPopCurrent_v2(void **context) { return *context = &decoded, DONE; }
int cuGetErrorName(int error, const char **name) { return *name = "failed", DONE; }
int cuGetErrorString(int error, const char **text) { return *text = "as the test wants it", DONE; }
int cuMemAlloc_v2(Address *memory, size_t bytes) { return *memory = (Address)calloc(bytes, 1), DONE; }
int cuMemFree_v2(Address memory) { return free((void *)memory), DONE; }

static char *start(const Place *place) {
    char *base = place->memory == ON_HOST ? place->host : (char *)place->device;
    return base + place->y * place->pitch + place->x;
}

int cuMemcpy2D_v2(const Copy *copy) {
    for (size_t row = 0; row < copy->height; row++)
        memcpy(start(&copy->to) + row * copy->to.pitch, start(&copy->from) + row * copy->from.pitch, copy->width);
    return DONE;
}
int cuMemcpy2DAsync_v2(const Copy *copy, void *stream) { return cuMemcpy2D_v2(copy); }

int cuvidGetDecoderCaps(Caps *caps) {
    caps->is_supported = caps->codec == H264 && caps->chroma == YUV420 && caps->bit_depth_minus_8 == 0;
    caps->output_formats = 1;
    caps->max_width = caps->max_height = 4096;
    caps->max_macroblocks = 65536;
    return DONE;
}

int cuvidCreateDecoder(Decoder **made, const Format *format) {
    Decoder *decoder = *made = calloc(1, sizeof *decoder);
    decoder->width = format->width;
    decoder->height = format->height;
    decoder->context = avcodec_alloc_context3(avcodec_find_decoder(AV_CODEC_ID_H264));
    decoder->context->flags |= AV_CODEC_FLAG_LOW_DELAY;
    decoder->context->thread_count = 1;
    // FFmpeg cuts what a driver has decoded.
    decoder->context->apply_cropping = 0;
    decoder->packet = av_packet_alloc();
    decoder->frame = av_frame_alloc();
    return avcodec_open2(decoder->context, NULL, NULL) < 0 ? FAILED : DONE;
}

int cuvidDestroyDecoder(Decoder *decoder) {
    for (int surface = 0; surface < SURFACES; surface++) free(decoder->surfaces[surface]);
    av_frame_free(&decoder->frame);
    av_packet_free(&decoder->packet);
    avcodec_free_context(&decoder->context);
    return free(decoder), DONE;
}

int cuvidDecodePicture(Decoder *decoder, const Picture *picture) {
    if (decoded == LASTS) { END; }
    decoded++;
    AVPacket *packet = decoder->packet;
    AVFrame *frame = decoder->frame;
    av_packet_unref(packet);
    if (av_new_packet(packet, sizeof headers + picture->length) < 0) return FAILED;
    memcpy(packet->data, headers, sizeof headers);
    memcpy(packet->data + sizeof headers, picture->bytes, picture->length);
    if (avcodec_send_packet(decoder->context, packet) < 0) return FAILED;
    if (avcodec_receive_frame(decoder->context, frame) < 0) return FAILED;
    size_t width = decoder->width, height = decoder->height;
    if (frame->width != width || frame->height != height || picture->surface >= SURFACES) return FAILED;
    unsigned char **surface = &decoder->surfaces[picture->surface];
    if (!*surface) *surface = malloc(width * height * 3 / 2);
    // One plane of brightness, and one of both colours.
    unsigned char *to = *surface;
    for (size_t row = 0; row < height; row++, to += width)
        memcpy(to, frame->data[0] + row * frame->linesize[0], width);
    for (size_t row = 0; row < height / 2; row++)
        for (size_t column = 0; column < width / 2; column++)
            for (int colour = 1; colour <= 2; colour++)
                *to++ = frame->data[colour][row * frame->linesize[colour] + column];
    return DONE;
}

int cuvidMapVideoFrame64(Decoder *decoder, int surface, Address *memory, unsigned *pitch, void *how) {
    *memory = (Address)decoder->surfaces[surface];
    *pitch = decoder->width;
    return DONE;
}

// What FFmpeg looks for, and calls, if at all, without minding what it does.
#define NOTHING(name) int name(void) { return DONE; }
NOTHING(cuInit) NOTHING(cuDeviceGetName) NOTHING(cuDeviceComputeCapability) NOTHING(cuCtxSetLimit)
NOTHING(cuCtxPushCurrent_v2) NOTHING(cuCtxDestroy_v2) NOTHING(cuMemAllocPitch_v2) NOTHING(cuMemAllocManaged)
NOTHING(cuMemsetD8Async) NOTHING(cuMemcpy) NOTHING(cuMemcpyAsync) NOTHING(cuMemcpyHtoD_v2)
NOTHING(cuMemcpyHtoDAsync_v2) NOTHING(cuMemcpyDtoH_v2) NOTHING(cuMemcpyDtoHAsync_v2) NOTHING(cuMemcpyDtoD_v2)
NOTHING(cuMemcpyDtoDAsync_v2) NOTHING(cuCtxGetDevice) NOTHING(cuDevicePrimaryCtxRetain)
NOTHING(cuDevicePrimaryCtxRelease) NOTHING(cuDevicePrimaryCtxSetFlags) NOTHING(cuDevicePrimaryCtxGetState)
NOTHING(cuDevicePrimaryCtxReset) NOTHING(cuStreamCreate) NOTHING(cuStreamQuery) NOTHING(cuStreamSynchronize)
NOTHING(cuStreamDestroy_v2) NOTHING(cuStreamAddCallback) NOTHING(cuEventCreate) NOTHING(cuEventDestroy_v2)
NOTHING(cuEventSynchronize) NOTHING(cuEventQuery) NOTHING(cuEventRecord) NOTHING(cuLaunchKernel)
NOTHING(cuLinkCreate) NOTHING(cuLinkAddData) NOTHING(cuLinkComplete) NOTHING(cuLinkDestroy)
NOTHING(cuModuleLoadData) NOTHING(cuModuleUnload) NOTHING(cuModuleGetFunction) NOTHING(cuModuleGetGlobal)
NOTHING(cuTexObjectCreate) NOTHING(cuTexObjectDestroy) NOTHING(cuGLGetDevices_v2)
NOTHING(cuGraphicsGLRegisterImage) NOTHING(cuGraphicsUnregisterResource) NOTHING(cuGraphicsMapResources)
NOTHING(cuGraphicsUnmapResources) NOTHING(cuGraphicsSubResourceGetMappedArray)
NOTHING(cuGraphicsResourceGetMappedPointer_v2) NOTHING(cuArray3DCreate_v2) NOTHING(cuArrayDestroy)
NOTHING(cuEGLStreamProducerConnect) NOTHING(cuEGLStreamProducerDisconnect)
NOTHING(cuEGLStreamConsumerDisconnect) NOTHING(cuEGLStreamProducerPresentFrame)
NOTHING(cuEGLStreamProducerReturnFrame) NOTHING(cuvidGetDecodeStatus) NOTHING(cuvidReconfigureDecoder)
NOTHING(cuvidUnmapVideoFrame64) NOTHING(cuvidCtxLockCreate) NOTHING(cuvidCtxLockDestroy) NOTHING(cuvidCtxLock)
NOTHING(cuvidCtxUnlock) NOTHING(cuvidCreateVideoSource) NOTHING(cuvidCreateVideoSourceW)
NOTHING(cuvidDestroyVideoSource) NOTHING(cuvidSetVideoSourceState) NOTHING(cuvidGetVideoSourceState)
NOTHING(cuvidGetSourceVideoFormat) NOTHING(cuvidGetSourceAudioFormat) NOTHING(cuvidCreateVideoParser)
NOTHING(cuvidParseVideoData) NOTHING(cuvidDestroyVideoParser)

// Stands in for the three libraries below TensorRT's Python classes, so that these can be imported.
//
// Nothing is built or executed by it. What it is for: calling an allocator as TensorRT does, through
// the C++ virtual functions that the classes' trampolines fill in. Their order is that of
// NvInferRuntimeBase.h, TensorRT 10 and 11.

#include <cstdint>
#include <thread>

namespace {

struct InterfaceInfo {
    char const* kind;
    int32_t major;
    int32_t minor;
};

class IVersionedInterface {
   public:
    virtual int32_t getAPILanguage() const noexcept = 0;
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

class IGpuAllocator : public IVersionedInterface {
   public:
    virtual void* allocate(uint64_t size, uint64_t alignment, uint32_t flags) noexcept = 0;
    virtual void* reallocate(void* memory, uint64_t alignment, uint64_t size) noexcept = 0;
    virtual bool deallocate(void* memory) noexcept = 0;
    virtual void* allocateAsync(uint64_t size, uint64_t alignment, uint32_t flags,
                                void* stream) noexcept = 0;
    virtual bool deallocateAsync(void* memory, void* stream) noexcept = 0;
};

template <typename Work>
auto in_thread(bool is_other, Work work) -> decltype(work()) {
    if (!is_other)
        return work();
    decltype(work()) answer{};
    std::thread([&] { answer = work(); }).join();
    return answer;
}

}  // namespace

extern "C" {

// The last argument of each: whether a thread calls that Python has not seen.

void* standin_allocate(IGpuAllocator* allocator, uint64_t size, uint64_t alignment, bool is_other) {
    return in_thread(is_other, [=] { return allocator->allocate(size, alignment, 0); });
}

void* standin_allocate_async(IGpuAllocator* allocator, uint64_t size, uint64_t alignment,
                             bool is_other) {
    return in_thread(is_other,
                     [=] { return allocator->allocateAsync(size, alignment, 0, nullptr); });
}

void* standin_reallocate(IGpuAllocator* allocator, void* memory, uint64_t alignment, uint64_t size,
                         bool is_other) {
    return in_thread(is_other, [=] { return allocator->reallocate(memory, alignment, size); });
}

bool standin_deallocate(IGpuAllocator* allocator, void* memory, bool is_other) {
    return in_thread(is_other, [=] { return allocator->deallocate(memory); });
}

bool standin_deallocate_async(IGpuAllocator* allocator, void* memory, bool is_other) {
    return in_thread(is_other, [=] { return allocator->deallocateAsync(memory, nullptr); });
}

char const* standin_kind(IGpuAllocator* allocator) { return allocator->getInterfaceInfo().kind; }

// What the Python classes link with; none of it is called.
void* createInferBuilder_INTERNAL(void*, int32_t) { return nullptr; }
void* createInferRuntime_INTERNAL(void*, int32_t) { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int32_t) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
int32_t getNvOnnxParserVersion() { return 0; }
void* getPluginRegistry() { return nullptr; }
void* getBuilderPluginRegistry(int32_t) { return nullptr; }
bool initLibNvInferPlugins(void*, char const*) { return true; }
}

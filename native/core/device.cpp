#include "core/error.h"
#include "core/library.h"

#include "ggml-backend.h"

#include <cstring>

extern "C" {

int32_t pyllm_device_count(void) {
    pyllm::library_init();
    return (int32_t) ggml_backend_dev_count();
}

pyllm_status pyllm_device_get(int32_t index, pyllm_device_info * info) {
    return pyllm::guard([&] {
        pyllm::not_null(info, "info");
        const int32_t n = pyllm_device_count();
        require(index >= 0 && index < n, PYLLM_INVALID_ARGUMENT, pyllm::format("device index %d is not in [0, %d)", index, n));
        *info = {};
        ggml_backend_dev_t dev = ggml_backend_dev_get((size_t) index);
        pyllm::copy_text(ggml_backend_dev_name(dev), info->name, sizeof(info->name), nullptr);
        pyllm::copy_text(ggml_backend_dev_description(dev), info->description, sizeof(info->description), nullptr);
        pyllm::copy_text(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), info->backend, sizeof(info->backend), nullptr);
        switch (ggml_backend_dev_type(dev)) {
            case GGML_BACKEND_DEVICE_TYPE_CPU:  info->type = PYLLM_DEVICE_CPU;  break;
            case GGML_BACKEND_DEVICE_TYPE_GPU:  info->type = PYLLM_DEVICE_GPU;  break;
            case GGML_BACKEND_DEVICE_TYPE_IGPU: info->type = PYLLM_DEVICE_IGPU; break;
            default:                            info->type = PYLLM_DEVICE_ACCEL; break;
        }
        size_t free = 0;
        size_t total = 0;
        ggml_backend_dev_memory(dev, &free, &total);
        info->memory_free  = free;
        info->memory_total = total;
    });
}

} // extern "C"

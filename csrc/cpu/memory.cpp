#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>

#include "pages.h"

namespace conv2affine {

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

#if defined(__linux__)

struct Mapping {
  void* address;
  size_t bytes;
};

void unmap(void* context) {
  const std::unique_ptr<Mapping> mapping(static_cast<Mapping*>(context));
  munmap(mapping->address, mapping->bytes);
}

// Fresh zeroed memory, or nothing where the system refuses.
c10::DataPtr map(int64_t bytes, bool huge_pages) {
  auto mapping = std::make_unique<Mapping>();
  mapping->bytes = bytes + kHugePage;  // room to align
  // MAP_NORESERVE: a matrix of which few pages are touched may be larger than the memory.
  mapping->address =
      mmap(nullptr, mapping->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping->address == MAP_FAILED) return {};
  const uintptr_t first = (reinterpret_cast<uintptr_t>(mapping->address) + kHugePage - 1) / kHugePage * kHugePage;
  void* data = reinterpret_cast<void*>(first);
  // A kernel without huge pages refuses; nothing is lost then but time. Said in both directions: the system may be set
  // to give huge pages to everybody.
  madvise(data, bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return {data, mapping.release(), &unmap, at::kCPU};
}

#else

c10::DataPtr map(int64_t, bool) { return {}; }

#endif

// A tensor of fresh memory, or an undefined one where small results or the system make torch's own the better choice.
at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options, bool huge_pages) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  c10::DataPtr data = bytes <= kLarge ? c10::DataPtr() : map(bytes, huge_pages);
  if (!data) return {};
  // With torch's allocator for resize_, which moves what is here to memory of its own.
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(data),
                                                       c10::GetCPUAllocator(), /*resizable=*/true);
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), options.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

}  // namespace

at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options, bool huge_pages) {
  const at::Tensor tensor = fresh(sizes, options, huge_pages);
  return tensor.defined() ? tensor : at::zeros(sizes, options);
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor tensor = fresh(sizes, options, /*huge_pages=*/true);
  return tensor.defined() ? tensor : at::empty(sizes, options);
}

}  // namespace conv2affine

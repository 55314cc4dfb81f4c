#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <memory>

namespace conv2affine {

namespace {

constexpr int64_t kPage = int64_t{4} << 10;
constexpr int64_t kHugePage = int64_t{2} << 20;
// Up to this, malloc mostly has memory at hand that is in place already: glibc keeps freed blocks of up to 32 MiB,
// unless they come to twice as much together.
constexpr int64_t kLarge = int64_t{16} << 20;
// With two threads, huge pages take as long as a tenth of the small ones do, and unmap far sooner.
constexpr double kHugePageShare = 0.1;

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

// Share of the small pages of a dense matrix in which weights lie, from 0 to 1.
double touched_share(const Convolution& conv, int64_t itemsize) {
  // From the weights of a kernel line outwards. What lies less than a page apart shares pages: it counts by the bytes
  // it spans, an unaligned span of n bytes being in 1 + n / page of them; what lies farther apart counts each for
  // itself.
  struct Level {
    int64_t count, distance;
  };
  const auto& [axis1, axis2, axis3] = conv.axes;
  const auto step = [](const Axis& axis) { return axis.rule == Rule::transposed ? 1 : axis.dilation; };
  const auto count = [](const Axis& axis) {
    const int64_t reads =
        axis.rule == Rule::transposed ? 1 + (axis.kernel - 1) * axis.dilation / axis.stride : axis.kernel;
    return std::min(reads, axis.input);
  };
  const int64_t row = conv.cols() * itemsize;
  const std::array<Level, 5> levels = {{{count(axis3), itemsize * step(axis3)},
                                        {count(axis2), itemsize * axis3.input * step(axis2)},
                                        {count(axis1), itemsize * axis3.input * axis2.input * step(axis1)},
                                        {conv.in_per_group, itemsize * conv.inputs()},
                                        {conv.rows(), row}}};
  double pages = 1, span = static_cast<double>(itemsize);
  for (const auto& [n, distance] : levels) {
    const double whole = static_cast<double>(n - 1) * static_cast<double>(distance) + span;
    pages = distance < kPage ? 1 + whole / kPage : static_cast<double>(n) * pages;
    span = whole;
  }
  return std::min(1.0, pages * kPage / (static_cast<double>(conv.rows()) * static_cast<double>(row)));
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

bool wants_huge_pages(const Convolution& conv, int64_t itemsize) {
  return touched_share(conv, itemsize) > kHugePageShare;
}

int64_t resident_bytes(const Convolution& conv, int64_t rows, int64_t itemsize) {
  const int64_t bytes = checked_product({rows, conv.cols(), itemsize}, "bytes of the dense matrix");
  if (bytes <= kLarge || wants_huge_pages(conv, itemsize)) return bytes;
  return static_cast<int64_t>(touched_share(conv, itemsize) * static_cast<double>(bytes));
}

}  // namespace conv2affine

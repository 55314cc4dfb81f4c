#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <time.h>
#endif

#include <algorithm>
#include <atomic>
#include <memory>

namespace conv2affine {

namespace {

#if defined(__linux__)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; an older one refuses it, and pages come as they are touched
#endif

constexpr int64_t kSmallPage = 4096;
// What the small pages in the place of a huge one take, roughly; and less than any page takes that is not there yet.
constexpr double kSmallPagesSeconds = 5e-4, kInPlaceSeconds = 2e-5;

// Memory fresh from the system, which holds a tensor.
struct Mapping {
  void* address;
  size_t bytes;
  Touched touched;
  double may_lose;  // seconds, by huge pages
  std::atomic<bool> huge_pages;
  std::atomic<double> lost;  // what two threads write at once may count once
};

void unmap(void* context) {
  const std::unique_ptr<Mapping> mapping(static_cast<Mapping*>(context));
  munmap(mapping->address, mapping->bytes);
}

uintptr_t round_up(uintptr_t address, int64_t page) { return (address + page - 1) / page * page; }

void advise(uintptr_t begin, uintptr_t end, int advice) {
  // A kernel without huge pages, or without this advice, refuses, which costs only time.
  madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

// Fresh zeroed memory, or nothing where the system refuses.
c10::DataPtr map(int64_t bytes, Touched touched) {
  auto mapping = std::make_unique<Mapping>();
  mapping->bytes = bytes + kHugePage;  // room to align
  // MAP_NORESERVE: a matrix of which few pages are touched may be larger than the memory.
  mapping->address =
      mmap(nullptr, mapping->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping->address == MAP_FAILED) return {};
  mapping->touched = touched;
  mapping->may_lose = lost_page_seconds * std::min(1.0, static_cast<double>(bytes) / kLostPageBytes);
  mapping->huge_pages = touched != Touched::kFew;
  mapping->lost = 0;
  const uintptr_t data = round_up(reinterpret_cast<uintptr_t>(mapping->address), kHugePage);
  // Both cases are set explicitly: the system's default may be huge pages everywhere.
  advise(data, data + bytes, mapping->huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return {reinterpret_cast<void*>(data), mapping.release(), &unmap, at::kCPU};
}

// Of this thread alone: other work on the machine does not count, what the host does on its behalf does.
double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

#else

c10::DataPtr map(int64_t, Touched) { return {}; }

#endif

// A tensor of fresh memory, or an undefined one where small results or the system make torch's own the better choice.
at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options, Touched touched) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  c10::DataPtr data = bytes <= kLarge ? c10::DataPtr() : map(bytes, touched);
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

at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options, Touched touched) {
  const at::Tensor tensor = fresh(sizes, options, touched);
  return tensor.defined() ? tensor : at::zeros(sizes, options);
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor tensor = fresh(sizes, options, Touched::kAll);
  return tensor.defined() ? tensor : at::empty(sizes, options);
}

#if defined(__linux__)

void place_pages(const at::Tensor& tensor, int64_t begin, int64_t end) {
  const c10::Storage& storage = tensor.storage();
  Mapping* mapping = storage.data_ptr().cast_context<Mapping>(&unmap);
  if (!mapping || mapping->touched == Touched::kFew) return;
  const int64_t item = static_cast<int64_t>(tensor.element_size());
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  uintptr_t page = (data + begin * item) / kSmallPage * kSmallPage;
  const uintptr_t stop = round_up(data + end * item, kSmallPage);
  for (; page < stop && mapping->huge_pages; page = round_up(page + 1, kHugePage)) {
    const double start = cpu_seconds();
    advise(page, page + kSmallPage, MADV_POPULATE_WRITE);  // all of the huge page, where the system grants one
    const double seconds = cpu_seconds() - start;
    if (seconds < kInPlaceSeconds) continue;
    const double lost = mapping->lost + seconds - kSmallPagesSeconds;
    mapping->lost = std::max(lost, 0.0);
    if (lost < mapping->may_lose) continue;
    mapping->huge_pages = false;
    const uintptr_t first = reinterpret_cast<uintptr_t>(storage.data());
    advise(first, first + storage.nbytes(), MADV_NOHUGEPAGE);  // those that are in place stay
  }
  if (page < stop && mapping->touched == Touched::kAll) advise(page, stop, MADV_POPULATE_WRITE);
}

#else

void place_pages(const at::Tensor&, int64_t, int64_t) {}

#endif

}  // namespace conv2affine

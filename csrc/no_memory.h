// What the operators throw where the system has no memory left for their tables.
#pragma once

#include <new>
#include <stdexcept>

namespace conv2affine {

// Translated by pybind11 to MemoryError.
struct NoMemory : std::bad_alloc {
  const char* what() const noexcept override {
    return "there is no memory for the tables of this convolution: its borders are too long";
  }
};

// Calls f.
template <typename F>
auto with_no_memory(const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    throw NoMemory();
  } catch (const std::length_error&) {  // no vector could be so long
    throw NoMemory();
  }
}

}  // namespace conv2affine

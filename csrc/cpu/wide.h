// Vector units wider than the baseline of x86-64, chosen by the loader among clones of a function.
#pragma once

// On a function whose loops the compiler vectorises. Clones do the same operations in the same order: results are the
// same. Measured: a fifth of the time of the adjoint of a large matrix.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CONV2AFFINE_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONV2AFFINE_WIDE
#endif

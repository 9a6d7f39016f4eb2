// What the check of kernel symbols must reject: a function that every translation unit may define, compiled with the
// flags of one. Not part of any program.

namespace bittensor {

inline int stray(int value) {
  return value + 1;
}

extern int (*const stray_kernels)(int);
int (*const stray_kernels)(int) = stray;

}  // namespace bittensor

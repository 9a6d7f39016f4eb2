#!/bin/sh
# usage: kernel_symbols.sh NM OBJECT...
#
# A translation unit that is compiled with instruction-set flags may define one global symbol: the constant
# bittensor::<isa>_<room> for the file <room>/<isa>.cpp, such as avx2_kernels. Anything else that the linker can see (an
# inline function, a template of the standard library) could be the copy that the whole library ends up with, and would
# then run on machines without those instructions.
nm=$1
shift
[ $# -gt 0 ] || { echo "no object files to check"; exit 1; }
status=0
for object in "$@"; do
  isa=$(basename "$object" | cut -d. -f1)
  name=${isa}_$(basename "$(dirname "$object")")
  symbols=$("$nm" --defined-only --extern-only --format=posix "$object") || exit 1
  allowed=_ZN9bittensor${#name}${name}E
  strays=$(printf '%s\n' "$symbols" | awk -v allowed="$allowed" '!($1 == allowed && $2 ~ /^[BDR]$/) { print $2, $1 }')
  if [ -n "$strays" ]; then
    echo "$object: defines symbols other than $allowed:"
    printf '%s\n' "$strays"
    status=1
  else
    echo "$object: only $allowed"
  fi
done
exit $status

#!/bin/sh
# Fails when an object compiled for one instruction set holds a symbol that the linker may share with
# others: the AVX-512 copy of an inline function could then be chosen for every machine.
# Arguments: object files; those named *_avx2.* and *_avx512.* are looked at.
failed=0
for object in "$@"; do
  case "$object" in
    *_avx512.cpp.o) isa=avx512 ;;
    *_avx2.cpp.o) isa=avx2 ;;
    *) continue ;;
  esac
  shared=$(nm -C --defined-only "$object" | grep -E ' [WVu] ' | grep -v "::$isa::")
  if [ -n "$shared" ]; then
    printf '%s shares:\n%s\n' "$object" "$shared"
    failed=1
  fi
done
exit $failed

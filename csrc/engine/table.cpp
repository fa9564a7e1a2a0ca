// This instruction set's engine, in one constant.
#include "engine.h"
#include "steps.h"

#define KDGEN_TEXT_(x) #x
#define KDGEN_TEXT(x) KDGEN_TEXT_(x)

KDGEN_BEGIN
namespace engine {

#if defined(__AVX512BF16__)
constexpr bool kFastPairs = true;
#else
constexpr bool kFastPairs = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool kFastBytes = true;
#else
constexpr bool kFastBytes = false;
#endif

extern const Engine table = {KDGEN_TEXT(KDGEN_TARGET),
                             kFastPairs,
                             kFastBytes,
                             convolve,
                             moments,
                             normalise,
                             attend,
                             resample,
                             combine,
                             input,
                             output};

}  // namespace engine
KDGEN_END

/* The sparse path on the CPU in one pass over memory; native.py calls it.

   It knows nothing of Python and PyTorch, so one library serves all their versions. It is linked to no OpenMP library:
   it finds that of PyTorch, which is loaded before it, and so shares PyTorch's threads. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CHUNK = 1 << 12 };          /* bytes that are scaled at once; then blocks are zeroed in them, in the cache */
enum { STATE = 624, SHIFT = 397 }; /* of the Mersenne Twister */

typedef struct {
    int64_t planes, depth, height, width; /* of the mask; 1 for an axis that is not there */
    int64_t block_depth, block_height, block_width;
    int64_t repeat;   /* planes of memory, one after the other, that have one mask */
    int64_t unit;     /* elements of memory, one after the other, that are one unit of the mask */
    int64_t channels; /* planes whose units lie interleaved in memory */
    int64_t dtype;    /* 0: float32, 1: bfloat16, 2: float64 */
    int64_t room;     /* for that many seeds */
    double log_keep;  /* log(1 - gamma) */
} Blocks;

INLINE int64_t valid_rows(const Blocks *b) { return b->height - b->block_height + 1; }
INLINE int64_t valid_columns(const Blocks *b) { return b->width - b->block_width + 1; }
INLINE int64_t valid(const Blocks *b) { return (b->depth - b->block_depth + 1) * valid_rows(b) * valid_columns(b); }
INLINE int64_t words(const Blocks *b) { return (b->width + 31) / 32; }
INLINE int64_t mask_words(const Blocks *b) { return (b->depth * b->height * words(b) + 1) / 2 * 2; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The corner of the block of the `place`-th position of a plane; rows are counted through all layers. */
typedef struct { int64_t row, column; } Corner;

INLINE Corner corner(const Blocks *b, uint32_t place, uint32_t columns)
{
    uint32_t row = place / columns;
    return (Corner){row + (b->depth > 1 ? row / valid_rows(b) * (b->block_height - 1) : 0), place - row * columns};
}

static const int32_t *first_from(const int32_t *seeds, const int32_t *end, int64_t position)
{
    while (seeds < end) {
        const int32_t *middle = seeds + (end - seeds) / 2;
        if (*middle < position) seeds = middle + 1;
        else end = middle;
    }
    return seeds;
}

/* --- drawing ------------------------------------------------------------------------------------------------- */

INLINE uint32_t twist(uint32_t a, uint32_t b, uint32_t far)
{
    return far ^ ((a & 0x80000000u) | (b & 0x7fffffffu)) >> 1 ^ (-(b & 1u) & 0x9908b0dfu);
}

CLONES static void next_state(uint32_t *s)
{
#pragma omp simd safelen(16)
    for (int i = 0; i < STATE - SHIFT; i++) s[i] = twist(s[i], s[i + 1], s[i + SHIFT]);
#pragma omp simd safelen(16)
    for (int i = STATE - SHIFT; i < STATE - 1; i++) s[i] = twist(s[i], s[i + 1], s[i + SHIFT - STATE]);
    s[STATE - 1] = twist(s[STATE - 1], s[0], s[SHIFT - 1]);
}

/* The gaps that drawing.py makes of PyTorch's next numbers. The logarithm is not PyTorch's to the last bit: returned is
   whether a quotient is so close to an integer that the difference might matter. */
CLONES static int next_gaps(const uint32_t *s, double rotation, double per_log, double most, double close, int32_t *gaps)
{
    int32_t words[STATE];
    double doubtful = 0;
    for (int i = 0; i < STATE; i++) {
        uint32_t y = s[i] ^ s[i] >> 11;
        y ^= y << 7 & 0x9d2c5680u;
        y ^= y << 15 & 0xefc60000u;
        y ^= y >> 18;
        words[i] = (int32_t)y;
    }
#pragma omp simd reduction(+ : doubtful)
    for (int i = 0; i < STATE / 2; i++) {
        double low = words[2 * i + 1], u = (words[2 * i] & 0x1fffff) * 0x1p32 + low + (low < 0 ? 0x1p32 : 0.0);
        u = u * 0x1p-53 + rotation;
        u -= u >= 1 ? 1.0 : 0.0;
        uint64_t bits;
        memcpy(&bits, &u, 8);
        double exponent = (int32_t)(bits >> 52) - 1023, m;
        bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
        memcpy(&m, &bits, 8);
        exponent += m > M_SQRT2 ? 1.0 : 0.0;
        m *= m > M_SQRT2 ? 0.5 : 1.0;
        double r = (m - 1) / (m + 1), q = r * r;
        double series = 1 + q * (1 / 3. + q * (1 / 5. + q * (1 / 7. + q * (1 / 9. + q * (1 / 11. + q * (1 / 13.
            + q * (1 / 15. + q * (1 / 17.))))))));
        double quotient = (2 * r * series + exponent * M_LN2) * per_log;
        quotient = u > 0 ? quotient : most;
        quotient = quotient < most ? quotient : most;
        double whole = (double)(int32_t)(quotient + 0.5), apart = fabs(quotient - whole) - close * whole;
        doubtful += apart < 0 ? 1.0 : 0.0; /* never where the whole is 0 */
        gaps[i] = (int32_t)quotient + 1;
    }
    return doubtful > 0;
}

/* What native.py expects of this file; raise both with every change of `Blocks` or of a function's arguments. */
int drop_block_interface(void) { return 3; }

/* `draw_seeds` of drawing.py: how many, or -1 if they must be drawn there. */
int64_t drop_block_draw(const Blocks *b, uint64_t rng_seed, double close, int32_t *seeds, int64_t room)
{
    uint32_t state[STATE] = {(uint32_t)rng_seed};
    int32_t gaps[STATE / 2];
    int64_t positions = b->planes * valid(b), count = 0, last = -1;
    for (uint32_t i = 1; i < STATE; i++) state[i] = 1812433253u * (state[i - 1] ^ state[i - 1] >> 30) + i;
    for (;;) {
        next_state(state);
        if (next_gaps(state, (double)(rng_seed >> 32) * 0x1p-32, 1 / b->log_keep, (double)positions + 0.5, close, gaps)) return -1;
        for (int i = 0; i < STATE / 2; i++) {
            last += gaps[i];
            if (last >= positions) return count;
            if (count == room) return -1;
            seeds[count++] = (int32_t)last;
        }
    }
}

/* --- counting ------------------------------------------------------------------------------------------------ */

/* Set the bits of blocks in a mask of 32-bit words: row by row, word by word, channel by channel. */
CLONES static void mark(const Blocks *b, const int32_t *seeds, const int32_t *end, uint32_t first_plane, int64_t channels,
                        uint32_t *mask)
{
    uint32_t per_plane = (uint32_t)valid(b), columns = (uint32_t)valid_columns(b);
    int64_t stride = words(b) * channels, reach = b->block_height * stride;
    for (; seeds < end; seeds++) {
        uint32_t plane = (uint32_t)*seeds / per_plane;
        Corner at = corner(b, (uint32_t)*seeds - plane * per_plane, columns);
        int64_t low = at.column / 32, high = (at.column + b->block_width - 1) / 32;
        uint32_t bits = ~0u << at.column % 32, last = ~0u >> (31 - (at.column + b->block_width - 1) % 32);
        uint32_t *word = mask + at.row * stride + low * channels + (plane - first_plane);
        for (int64_t w = low; w <= high; w++, word += channels, bits = ~0u) {
            if (w == high) bits &= last;
            for (int64_t z = 0; z < b->block_depth; z++) {
                uint32_t *row = word + z * b->height * stride, *stop = row + reach;
                for (; row < stop; row += stride) *row |= bits;
            }
        }
    }
}

INLINE int64_t common(int64_t a, int64_t b, int64_t length) { int64_t d = llabs(a - b); return d < length ? length - d : 0; }

/* How many units the blocks of whole planes drop. */
CLONES static int64_t count_some(const Blocks *blocks, const int32_t *seeds, const int32_t *end, uint32_t *mask)
{
    const Blocks copy = *blocks, *b = &copy; /* that the mask cannot overlap, as far as the compiler knows */
    int64_t size = mask_words(b), block = b->block_depth * b->block_height * b->block_width, dropped = 0;
    uint32_t per_plane = (uint32_t)valid(b), columns = (uint32_t)valid_columns(b);
    while (seeds < end) {
        uint32_t plane = (uint32_t)*seeds / per_plane * per_plane;
        int64_t next = (int64_t)plane + per_plane, n = 1;
        while (seeds + n < end && seeds[n] < next) n++;
        if (n == 1) {
            dropped += block;
        } else if (n == 2 && b->depth == 1) {
            Corner one = corner(b, seeds[0] - plane, columns), two = corner(b, seeds[1] - plane, columns);
            dropped += 2 * block - common(one.row, two.row, b->block_height) * common(one.column, two.column, b->block_width);
        } else {
            for (int64_t i = 0; i < size; i++) mask[i] = 0;
            mark(b, seeds, seeds + n, plane / per_plane, 1, mask);
            for (int64_t i = 0; i < size; i += 2) {
                uint64_t pair;
                memcpy(&pair, mask + i, 8);
                dropped += __builtin_popcountll(pair);
            }
        }
        seeds += n;
    }
    return dropped;
}

/* Of the planes that have seeds, those that begin in the t-th of n parts of the seeds. */
static int64_t count_part(const Blocks *b, const int32_t *seeds, int64_t count, int t, int n, uint32_t *mask)
{
    const int32_t *end = seeds + count, *low = seeds + count * t / n, *high = seeds + count * (t + 1) / n;
    int64_t per_plane = valid(b);
    if (per_plane == 1) return (high - low) * b->depth * b->height * b->width;
    while (low > seeds && low < end && low[0] / per_plane == low[-1] / per_plane) low++;
    while (high > seeds && high < end && high[0] / per_plane == high[-1] / per_plane) high++;
    return count_some(b, low, high, mask);
}

/* --- applying ------------------------------------------------------------------------------------------------ */

INLINE float from_bfloat16(uint16_t bits) { uint32_t wide = (uint32_t)bits << 16; float x; memcpy(&x, &wide, 4); return x; }
INLINE uint16_t to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0u : bits);
}
#define SAME(x) (x)

/* Ask for the memory that is next but a chunk: the processor does not look ahead from one page to the next. */
INLINE void prefetch(const void *in, void *out)
{
    __builtin_prefetch((const char *)in + CHUNK), __builtin_prefetch((char *)out + CHUNK, 1);
}

/* For each dtype: scale `n` elements; the same for channels of one unit, 0 where the bit is set in their mask. Lines of
   the cache, then the rest. */
#define APPLY(NAME, T, OP, FROM, TO)                                                                                 \
    CLONES static void scale_##NAME(const void *input, void *output, int64_t n, double scale)                        \
    {                                                                                                                \
        enum { LINE = 64 / sizeof(T) };                                                                              \
        const T *x = input;                                                                                          \
        T *y = output;                                                                                               \
        OP s = (OP)scale;                                                                                            \
        for (; n >= LINE; n -= LINE, x += LINE, y += LINE) {                                                         \
            prefetch(x, y);                                                                                          \
            _Pragma("omp simd") for (int i = 0; i < LINE; i++) y[i] = TO(FROM(x[i]) * s);                            \
        }                                                                                                            \
        for (int i = 0; i < n; i++) y[i] = TO(FROM(x[i]) * s);                                                       \
    }                                                                                                                \
    CLONES static void row_##NAME(const void *input, void *output, const uint32_t *mask, int64_t width,              \
                                  int64_t channels, double scale)                                                    \
    {                                                                                                                \
        enum { LINE = 64 / sizeof(T) };                                                                              \
        const T *x = input;                                                                                          \
        T *y = output;                                                                                               \
        OP s = (OP)scale;                                                                                            \
        for (int64_t w = 0; w < width; w++) {                                                                        \
            const uint32_t *dropped = mask + w / 32 * channels;                                                      \
            uint32_t bit = 1u << w % 32;                                                                             \
            int64_t n = channels;                                                                                    \
            for (; n >= LINE; n -= LINE, x += LINE, y += LINE, dropped += LINE) {                                    \
                prefetch(x, y);                                                                                      \
                _Pragma("omp simd") for (int i = 0; i < LINE; i++) {                                                 \
                    T scaled = TO(FROM(x[i]) * s);                                                                   \
                    y[i] = dropped[i] & bit ? 0 : scaled;                                                            \
                }                                                                                                    \
            }                                                                                                        \
            for (; n; n--, x++, y++, dropped++) *y = *dropped & bit ? 0 : TO(FROM(*x) * s);                          \
        }                                                                                                            \
    }
APPLY(float32, float, float, SAME, SAME)
APPLY(bfloat16, uint16_t, float, from_bfloat16, to_bfloat16)
APPLY(float64, double, double, SAME, SAME)

static const struct {
    int64_t size;
    void (*scale)(const void *, void *, int64_t, double);
    void (*row)(const void *, void *, const uint32_t *, int64_t, int64_t, double);
} DTYPES[] = {{4, scale_float32, row_float32}, {2, scale_bfloat16, row_bfloat16}, {8, scale_float64, row_float64}};

/* Zero `count` stretches of `length` bytes, 2 or more, whose starts are `step` bytes apart. */
INLINE void zero(char *p, int64_t count, int64_t step, int64_t length)
{
    if (length > 32) {
        for (; count--; p += step) memset(p, 0, length);
    } else if (length >= 16) { /* two stores that overlap are faster than a call */
        for (; count--; p += step) memset(p, 0, 16), memset(p + length - 16, 0, 16);
    } else if (length >= 8) {
        for (; count--; p += step) memset(p, 0, 8), memset(p + length - 8, 0, 8);
    } else if (length >= 4) {
        for (; count--; p += step) memset(p, 0, 4), memset(p + length - 4, 0, 4);
    } else {
        for (; count--; p += step) memset(p, 0, 2);
    }
}

static void apply_planes(const Blocks *b, const char *in, char *out, const int32_t *seeds, const int32_t *end,
                         double scale, int64_t low, int64_t high)
{
    int64_t item = DTYPES[b->dtype].size, line = b->width * b->unit * item, plane = b->depth * b->height * line;
    int64_t at_once = plane * b->repeat < CHUNK ? CHUNK / (plane * b->repeat) : 1;
    int64_t length = b->block_width * b->unit * item, lines = b->block_height, layers = b->block_depth;
    if (b->block_width == b->width) { /* the lines of a block are one stretch of memory */
        length *= lines, lines = 1;
        if (b->block_height == b->height) length *= layers, layers = 1;
    }
    seeds = first_from(seeds, end, low * valid(b));
    int64_t from = low * b->repeat * plane, end_of_memory = high * b->repeat * plane;
    for (int64_t stop; low < high; low = stop) {
        stop = least(low + at_once, high);
        int64_t to = least((stop * b->repeat * plane + 63) / 64 * 64, end_of_memory); /* whole lines of the cache */
        if (to > from) DTYPES[b->dtype].scale(in + from, out + from, (to - from) / item, scale);
        from = to;
        for (; seeds < end && *seeds < stop * valid(b); seeds++) {
            int64_t index = (uint32_t)*seeds / (uint32_t)valid(b);
            Corner at = corner(b, *seeds - index * valid(b), valid_columns(b));
            char *first = out + index * b->repeat * plane + at.row * line + at.column * b->unit * item;
            for (int64_t copy = 0; copy < b->repeat; copy++)
                for (int64_t z = 0; z < layers; z++)
                    zero(first + copy * plane + z * b->height * line, lines, line, length);
        }
    }
}

static void apply_rows(const Blocks *b, const char *in, char *out, const int32_t *seeds, const int32_t *end,
                       double scale, int64_t low, int64_t high, uint32_t *mask)
{
    int64_t rows = b->depth * b->height, row_words = words(b) * b->channels, sample = -1;
    int64_t line = b->width * b->channels * DTYPES[b->dtype].size, per_sample = b->channels * valid(b);
    for (; low < high; low++) {
        if (low / rows != sample) {
            sample = low / rows;
            memset(mask, 0, rows * row_words * 4);
            seeds = first_from(seeds, end, sample * per_sample);
            mark(b, seeds, first_from(seeds, end, (sample + 1) * per_sample), sample * b->channels, b->channels, mask);
        }
        DTYPES[b->dtype].row(in + low * line, out + low * line, mask + low % rows * row_words, b->width, b->channels, scale);
    }
}

/* Write the input with blocks zeroed and the rest scaled; a scale below 0 is counted. The scale, or -1 without memory. */
double drop_block_apply(const Blocks *b, const void *in, void *out, const int32_t *seeds, int64_t count, double scale,
                        int64_t threads)
{
    int64_t total = b->channels > 1 ? b->planes / b->channels * b->depth * b->height : b->planes;
    int64_t size = mask_words(b) * b->channels, dropped = 0, units = b->planes * b->depth * b->height * b->width;
    uint32_t *masks = malloc(threads * size * sizeof *masks);
    if (!masks) return -1;
    double counted = scale;
#pragma omp parallel num_threads((int)threads)
    {
        int t = omp_get_thread_num(), n = omp_get_num_threads();
        uint32_t *mask = masks + t * size;
        double factor = scale;
        if (scale < 0) {
            int64_t part = count_part(b, seeds, count, t, n, mask);
#pragma omp atomic
            dropped += part;
#pragma omp barrier
            factor = dropped < units ? (double)units / (double)(units - dropped) : 0.0;
            if (t == 0) counted = factor;
        }
        int64_t low = total * t / n, high = total * (t + 1) / n;
        if (b->channels > 1) apply_rows(b, in, out, seeds, seeds + count, factor, low, high, mask);
        else apply_planes(b, in, out, seeds, seeds + count, factor, low, high);
    }
    free(masks);
    return counted;
}

/* Both: the scale, or -1 if it must be done in two steps. */
double drop_block(const Blocks *b, uint64_t rng_seed, double close, const void *in, void *out, double scale,
                  int64_t threads)
{
    int32_t *seeds = malloc(b->room * sizeof *seeds);
    int64_t count = seeds ? drop_block_draw(b, rng_seed, close, seeds, b->room) : -1;
    if (count >= 0) scale = drop_block_apply(b, in, out, seeds, count, scale, threads);
    free(seeds);
    return count >= 0 ? scale : -1;
}

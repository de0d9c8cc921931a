/* The multiresolution hash grid as a plain C loop: the measure of our CPU kernels, not a backend.
 *
 * The arithmetic is that of jointdreamer/fields/encoding.py, which explains it. x (n, 3); params and grad_params
 * (entries * FEATURES), level by level; offsets (n_levels + 1), the first entry of each level; scales (n_levels);
 * resolutions (n_levels); features and grad (n, n_levels * FEATURES). FEATURES is a constant of the compilation, so
 * that the compiler can unroll.
 *
 * c_loop.py compiles and calls it.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef FEATURES
#define FEATURES 2
#endif

/* A cell's eight table entries and trilinear weights. */
static inline void corners(const float *x, float scale, uint32_t resolution, uint32_t entries, uint32_t index[8],
                           float weight[8]) {
    uint32_t cell[3];
    float fraction[3];
    for (int axis = 0; axis < 3; axis++) {
        float position = x[axis] * scale + 0.5f;
        float below = floorf(position);
        cell[axis] = (uint32_t)(int64_t)below;
        fraction[axis] = position - below;
    }
    int dense = (uint64_t)resolution * resolution * resolution <= entries;
    for (int corner = 0; corner < 8; corner++) {
        uint32_t vertex[3];
        float w = 1.0f;
        for (int axis = 0; axis < 3; axis++) {
            int upper = (corner >> axis) & 1;
            vertex[axis] = cell[axis] + upper;
            w *= upper ? fraction[axis] : 1.0f - fraction[axis];
        }
        uint32_t at;
        if (dense) {
            at = vertex[0] + resolution * (vertex[1] + resolution * vertex[2]);
            if (at >= entries) at %= entries;
        } else {
            at = (vertex[0] ^ vertex[1] * 2654435761u ^ vertex[2] * 805459861u) & (entries - 1);
        }
        index[corner] = at;
        weight[corner] = w;
    }
}

/* features = encoding(x): level by level (30% faster than point by point), the points shared out among the threads. */
void hash_grid_forward(const float *x, const float *params, const int64_t *offsets, const float *scales,
                       const int64_t *resolutions, int64_t n, int64_t n_levels, float *features) {
    for (int64_t level = 0; level < n_levels; level++) {
        int64_t entries = offsets[level + 1] - offsets[level];
        const float *table = params + offsets[level] * FEATURES;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            uint32_t index[8];
            float weight[8], sum[FEATURES] = {0};
            corners(x + 3 * i, scales[level], resolutions[level], entries, index, weight);
            for (int corner = 0; corner < 8; corner++)
                for (int f = 0; f < FEATURES; f++) sum[f] += weight[corner] * table[(int64_t)index[corner] * FEATURES + f];
            for (int f = 0; f < FEATURES; f++) features[(i * n_levels + level) * FEATURES + f] = sum[f];
        }
    }
}

/* grad_params = the gradient of sum(features * grad): one thread a level, so that no two write one entry. */
void hash_grid_backward(const float *x, const float *grad, const int64_t *offsets, const float *scales,
                        const int64_t *resolutions, int64_t n, int64_t n_levels, float *grad_params) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t level = 0; level < n_levels; level++) {
        int64_t entries = offsets[level + 1] - offsets[level];
        float *table = grad_params + offsets[level] * FEATURES;
        memset(table, 0, entries * FEATURES * sizeof(float));
        for (int64_t i = 0; i < n; i++) {
            uint32_t index[8];
            float weight[8];
            corners(x + 3 * i, scales[level], resolutions[level], entries, index, weight);
            for (int corner = 0; corner < 8; corner++)
                for (int f = 0; f < FEATURES; f++)
                    table[(int64_t)index[corner] * FEATURES + f] += weight[corner] * grad[(i * n_levels + level) * FEATURES + f];
        }
    }
}

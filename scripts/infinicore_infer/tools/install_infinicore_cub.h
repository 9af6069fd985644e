// Gives InfiniCore 0.1.0 what it uses of CUB and CUDA 13 took away: the function objects Max, Min and Sum of namespace
// cub. Included before every CUDA source (scripts/infinicore_infer/tools/install_infinicore_source.py); empty with CUDA
// 11 and 12, whose CUB still has them.
#pragma once

#ifdef __CUDACC__
#include <cub/version.cuh>
#if CUB_VERSION >= 300000
#include <cuda/std/type_traits>

// The plain namespace: whatever version namespace CUB puts its own names into, `cub::Max` finds these.
namespace cub {

struct Max {
    template <class A, class B>
    __host__ __device__ constexpr ::cuda::std::common_type_t<A, B> operator()(A &&a, B &&b) const {
        using T = ::cuda::std::common_type_t<A, B>;
        const T left = static_cast<T>(a);
        const T right = static_cast<T>(b);
        return left < right ? right : left;
    }
};

struct Min {
    template <class A, class B>
    __host__ __device__ constexpr ::cuda::std::common_type_t<A, B> operator()(A &&a, B &&b) const {
        using T = ::cuda::std::common_type_t<A, B>;
        const T left = static_cast<T>(a);
        const T right = static_cast<T>(b);
        return right < left ? right : left;
    }
};

struct Sum {
    template <class A, class B> __host__ __device__ constexpr auto operator()(A &&a, B &&b) const {
        return static_cast<A &&>(a) + static_cast<B &&>(b);
    }
};

}  // namespace cub
#endif
#endif

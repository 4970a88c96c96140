//! Cache prefetch. One of the few modules with `unsafe`.
#![allow(unsafe_code)]

/// Prefetches the cache line at `at`. Affects timing only.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    prefetch_address(core::ptr::from_ref(at).addr());
}

/// The same for an address, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch_address(at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally and faults on no address, mapped or not. SSE
    // is part of the x86-64 baseline.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch(core::ptr::without_provenance::<i8>(at), _MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

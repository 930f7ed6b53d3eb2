//go:build linux

package main

import "math/bits"

// A histogram counts durations in nanoseconds, with a precision of 1/64.
type histogram struct {
	count   int64
	buckets [64 * 40]int64
}

func (h *histogram) add(ns int64) {
	h.count++
	h.buckets[bucket(max(0, ns))]++
}

// bucket returns the bucket of a duration. Below 128 each duration has a bucket
// of its own. Above that each power of two has 64 buckets.
func bucket(ns int64) int {
	shift := max(0, bits.Len64(uint64(ns))-7)
	return min(shift*64+int(ns>>shift), 64*40-1)
}

// lowest returns the lowest duration of a bucket.
func lowest(bucket int) int64 {
	if bucket < 128 {
		return int64(bucket)
	}
	shift := bucket/64 - 1
	return int64(bucket-shift*64) << shift
}

func (h *histogram) merge(other *histogram) {
	h.count += other.count
	for i, n := range other.buckets {
		h.buckets[i] += n
	}
}

// quantile returns the duration below which the part q of all durations is.
func (h *histogram) quantile(q float64) float64 {
	rank := int64(q * float64(h.count))
	for i, n := range h.buckets {
		if rank -= n; rank < 0 {
			return float64(lowest(i))
		}
	}
	return 0
}

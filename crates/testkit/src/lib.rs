//! Test cluster harness: builds images, starts clusters, waits for conditions.

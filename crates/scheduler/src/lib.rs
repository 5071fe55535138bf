//! The scheduler: framework, plugins, queue.

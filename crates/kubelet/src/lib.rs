//! The node agent: runs pods through CRI.

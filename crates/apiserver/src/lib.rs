//! The Kubernetes API server: HTTP, authentication, authorization, admission, watch cache.

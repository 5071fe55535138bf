//! Kubernetes clients, informers, work queues, leader election, event recorder.

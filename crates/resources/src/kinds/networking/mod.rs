//! `networking.k8s.io/v1`: ways into the cluster and rules between its pods.

mod ingress;
mod ingress_class;
mod ip_address;
mod network_policy;
mod service_cidr;

pub use ingress::Ingress;
pub use ingress_class::IngressClass;
pub use ip_address::IPAddress;
pub use network_policy::NetworkPolicy;
pub use service_cidr::ServiceCIDR;

const GROUP: &str = "networking.k8s.io";

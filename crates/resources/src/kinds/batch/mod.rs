//! `batch/v1`: work that ends.

mod cron_job;
mod job;
mod job_status;
mod policies;
mod schedule;

pub use cron_job::CronJob;
pub use job::Job;
pub use schedule::{Calendar, Schedule, time_zone};

//! Flags. Every count and every time has a bound here; scenarios add none of their own.

use std::{fmt, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum, value_parser};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Creates, gets, deletes, lists and watches of ConfigMaps.
    Api,
    /// Pods from the create call to Ready, and from the delete call to gone.
    Pods,
    /// A Deployment of many pods up, over and down, on nodes without processes that this command brings.
    Scale,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Scenario::Api => "api",
            Scenario::Pods => "pods",
            Scenario::Scale => "scale",
        })
    }
}

/// Benchmarks a Kubernetes cluster, in a namespace of its own that it removes again.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench", version)]
pub struct Options {
    /// What to measure; without any, all of it.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// Names the cluster; without it, $KUBECONFIG or ~/.kube/config.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than the current one.
    #[arg(long)]
    pub context: Option<String>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Speaks HTTP/2, still with one TCP connection for each counted one.
    #[arg(long)]
    pub http2: bool,
    /// How often each measurement is taken; the median is reported.
    #[arg(long, default_value_t = 3, value_parser = count(100))]
    pub runs: usize,
    /// Ends the whole run after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = seconds)]
    pub timeout: Duration,
    /// Processes whose memory is reported before and after: private and shared pages from smaps_rollup.
    #[arg(long = "pid", value_name = "PID", value_delimiter = ',')]
    pub pids: Vec<u32>,

    /// Connections that send requests at the same time; measures each number given.
    #[arg(long, default_value = "1,32", value_delimiter = ',', value_parser = count(1_000), help_heading = "api")]
    pub connections: Vec<usize>,
    /// Requests of one measurement.
    #[arg(long, default_value_t = 2_000, value_parser = count(1_000_000), help_heading = "api")]
    pub count: usize,
    /// Ends one measurement after so many seconds, even with fewer requests.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds, help_heading = "api")]
    pub seconds: Duration,
    /// Bytes of JSON of one created ConfigMap.
    #[arg(long, default_value_t = 1_024, value_parser = count(1_000_000), help_heading = "api")]
    pub size: usize,
    /// ConfigMaps in the measured list.
    #[arg(long, default_value_t = 15_000, value_parser = count(1_000_000), help_heading = "api")]
    pub list_items: usize,
    /// Bytes of JSON that those come to, roughly; the report shows the actual number.
    #[arg(long, default_value_t = 25_000_000, value_parser = count(1_000_000_000), help_heading = "api")]
    pub list_bytes: usize,
    /// Watchers that are sent the same event, each over its own connection; measures each number given.
    #[arg(long, default_value = "1,100", value_delimiter = ',', value_parser = count(10_000), help_heading = "api")]
    pub watchers: Vec<usize>,
    /// Events sent to them, one after the other.
    #[arg(long, default_value_t = 100, value_parser = count(100_000), help_heading = "api")]
    pub events: usize,

    /// Pods created at once; measures each number given.
    #[arg(long, default_value = "1,10,100", value_delimiter = ',', value_parser = count(5_000), help_heading = "pods")]
    pub pods: Vec<usize>,
    /// What the pods run; pulled before the measurement if it is not present.
    #[arg(long, default_value = "isopod.local/hello:latest", help_heading = "pods")]
    pub image: String,
    /// Gives up when pods are not Ready, or not gone, after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds, help_heading = "pods")]
    pub pod_timeout: Duration,

    /// Pods of the Deployment.
    #[arg(long, default_value_t = 1_000, value_parser = count(100_000), help_heading = "scale")]
    pub replicas: usize,
    /// Kubelets to start, each a node that takes only these pods.
    #[arg(long, default_value_t = 10, value_parser = count(1_000), help_heading = "scale")]
    pub nodes: usize,
}

impl Options {
    pub fn scenarios(&self) -> &[Scenario] {
        if self.scenarios.is_empty() { Scenario::value_variants() } else { &self.scenarios }
    }
}

/// A number from 1 to `most`.
fn count(most: u64) -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    value_parser!(u64).range(1..=most).map(|number| number as usize)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("must be more than zero".into()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(["bench"].into_iter().chain(arguments.split_whitespace()))
    }

    #[test]
    fn defaults_are_the_published_benchmark() {
        let options = parse("").unwrap();
        assert_eq!(options.scenarios(), [Scenario::Api, Scenario::Pods, Scenario::Scale]);
        assert_eq!((options.replicas, options.nodes), (1_000, 10));
        assert_eq!(
            (options.connections, options.watchers, options.pods),
            (vec![1, 32], vec![1, 100], vec![1, 10, 100])
        );
        assert_eq!((options.size, options.list_items, options.list_bytes), (1_024, 15_000, 25_000_000));
        assert_eq!((options.runs, options.timeout), (3, Duration::from_secs(900)));
    }

    #[test]
    fn flags_select() {
        let options =
            parse("api --kubeconfig f --connections 1,2 --pid 7,8 --pid 9 --seconds 0.5 --http2 --json").unwrap();
        assert_eq!(options.scenarios(), [Scenario::Api]);
        assert_eq!(
            (options.kubeconfig, options.connections, options.pids),
            (Some("f".into()), vec![1, 2], vec![7, 8, 9])
        );
        assert_eq!((options.seconds, options.http2, options.json), (Duration::from_millis(500), true, true));
    }

    #[test]
    fn bounds_hold() {
        let refused = [
            "--runs 0",
            "--connections 1,0",
            "--pods 5001",
            "--seconds 0",
            "--seconds -1",
            "--timeout x",
            "--count 1e9",
            "cpu",
        ];
        for arguments in refused {
            assert!(parse(arguments).is_err(), "{arguments}");
        }
    }
}

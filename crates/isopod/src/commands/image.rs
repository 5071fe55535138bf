//! `isopod image`: works on a cluster's image store directly, whether the cluster runs or not.

use anyhow::bail;

use crate::cli::Image;
use crate::cluster::node::open_images;
use crate::sandbox::Sandbox;

pub fn run(command: Image) -> anyhow::Result<()> {
    match command {
        Image::Import { archives, name } => {
            let images = store(&name.name)?;
            for archive in archives {
                for image in images.import(&archive)? {
                    println!("imported {}", image.tags.join(", "));
                }
            }
        }
        Image::List(name) => {
            for image in store(&name.name)?.list()?.iter() {
                let names = if image.tags.is_empty() { image.digests.join(",") } else { image.tags.join(",") };
                let id = image.id.trim_start_matches("sha256:");
                println!("{}  {:>9.1} MB  {names}", &id[..id.len().min(12)], image.size as f64 / 1e6);
            }
        }
        Image::Rm { images, name } => {
            let store = store(&name.name)?;
            for image in images {
                store.remove(&image)?;
                println!("removed {image}");
            }
        }
    }
    Ok(())
}

fn store(name: &str) -> anyhow::Result<runtime::Images> {
    let sandbox = Sandbox::new(name)?;
    if sandbox.state().is_none() {
        bail!("there is no cluster {name:?}; start it with `isopod up --name {name}`");
    }
    open_images(&sandbox.data_dir)
}

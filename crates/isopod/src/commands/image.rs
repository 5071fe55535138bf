//! `isopod image`: works on an image store directly, whether its cluster runs or not.

use anyhow::bail;

use crate::cli::{Image, ImageStore};
use crate::cluster::node::open_images;
use crate::sandbox::Sandbox;

pub fn run(command: Image) -> anyhow::Result<()> {
    match command {
        Image::Import { archives, store } => {
            let images = open(&store)?;
            for archive in archives {
                for image in images.import(&archive)? {
                    println!("imported {}", image.tags.join(", "));
                }
            }
        }
        Image::List(store) => {
            for image in open(&store)?.list()?.iter() {
                let names = if image.tags.is_empty() { image.digests.join(",") } else { image.tags.join(",") };
                let id = image.id.trim_start_matches("sha256:");
                println!("{}  {:>9.1} MB  {names}", &id[..id.len().min(12)], image.size as f64 / 1e6);
            }
        }
        Image::Rm { images, store } => {
            let store = open(&store)?;
            for image in images {
                store.remove(&image)?;
                println!("removed {image}");
            }
        }
    }
    Ok(())
}

fn open(store: &ImageStore) -> anyhow::Result<runtime::Images> {
    if let Some(data_dir) = &store.data_dir {
        return open_images(data_dir);
    }
    let name = &store.name.name;
    let sandbox = Sandbox::new(name)?;
    if sandbox.state().is_none() {
        bail!("there is no cluster {name:?}; start it with `isopod up --name {name}`");
    }
    open_images(&sandbox.data_dir)
}

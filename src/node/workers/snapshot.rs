//! The snapshot thread: writes images, verifies images of peers, and makes spare log segments. So
//! neither the wal nor the apply thread waits for bulk I/O. The files themselves are the part of
//! [`crate::wal::Images`].
//!
//! Left out: spares while an image is being written. A log that fills more than one segment in that
//! time makes its next segment itself.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::node::files::{FileImages, ImagePart};
use crate::node::queues::SnapshotWork;
use crate::node::shared::Shared;
use crate::node::stop::{Fatal, Stop};
use crate::replica::Input;
use crate::store::{Image, ImageError};
use crate::types::{NodeId, SnapshotMeta};
use crate::wal::{FileDisk, SpareJob, is_full};

/// The interval at which a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// The longest rest between two pieces of an image. It bounds the wait of a node that stops.
const REST_MAX: Duration = Duration::from_millis(20);

/// Makes an image durable. Returns its length in bytes.
fn write(images: &FileImages, image: Image, stop: &Stop) -> io::Result<u64> {
    let (mut part, meta) = (images.begin()?, image.meta());
    let bytes = image.write(&mut Unhurried { part: &mut part, stop, rested: Instant::now() })?;
    images.finish(part, meta)?;
    Ok(bytes)
}

/// Writes half of the time and rests the other half, so that clients' threads find a processor and
/// the disk free. Fails when the node stops.
struct Unhurried<'a> {
    part: &'a mut ImagePart,
    stop: &'a Stop,
    /// The end of the latest rest.
    rested: Instant,
}

impl Write for Unhurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_set() {
            return Err(io::Error::other("the node is stopping"));
        }
        let written = self.part.write(bytes)?;
        thread::sleep(self.rested.elapsed().min(REST_MAX));
        self.rested = Instant::now();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.part.flush()
    }
}

/// Verifies an image from a peer, and makes it durable.
fn verify(images: &FileImages, part: ImagePart, meta: SnapshotMeta) -> Result<Image, ImageError> {
    let image = Image::read(&mut part.read()?)?;
    // The image is sound in itself. It must also be the snapshot that its chunks were named after.
    if image.meta() != meta {
        return Err(ImageError::Corrupt { offset: 0, what: "it is another snapshot" });
    }
    images.finish(part, meta)?;
    Ok(image)
}

/// Works until the node ends.
pub fn run(shared: &Shared, work: &Receiver<SnapshotWork>) {
    let mut spare_failed = false;
    loop {
        // Without room for a spare, writes are refused. On an idle node no other work would come to
        // find that there is room again, so this thread looks by itself.
        let next = if spare_failed {
            work.recv_timeout(FULL_RETRY)
        } else {
            work.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match next {
            Ok(SnapshotWork::Write(image)) => write_own(shared, *image),
            Ok(SnapshotWork::Arrived { from, meta, part }) => arrived(shared, from, meta, part),
            Ok(SnapshotWork::Discard(old)) => drop(old),
            Ok(SnapshotWork::Spare(job)) => spare_failed = !make_spare(shared, job, spare_failed),
            Ok(SnapshotWork::SpareReady) => {
                if std::mem::take(&mut spare_failed) {
                    report_room(shared);
                }
            }
            Ok(SnapshotWork::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => shared.core.check_spare(),
        }
    }
}

fn write_own(shared: &Shared, image: Image) {
    let (meta, keys, started) = (image.meta(), image.stats().keys, shared.clock.now());
    match write(&shared.images, image, &shared.stop) {
        Ok(bytes) => {
            shared.core.step([Input::SnapshotTaken { meta, bytes }]);
            let took = shared.clock.now().since(started);
            log::info!(
                target: "NodeSync",
                "Snapshot at index {} with {keys} keys written in {} ms",
                meta.index,
                took.as_millis()
            );
            remove_older(shared);
        }
        // Only the log's compaction is late; the replica tries again later.
        Err(error) if is_full(&error) => {
            log::error!(target: "FAILURE", "Disk full: no room for a snapshot");
            shared.core.step([Input::SnapshotFailed]);
        }
        // Cut short by `Unhurried`. The unfinished file is removed with its `ImagePart`.
        Err(_) if shared.stop.is_set() => {}
        Err(error) => shared.stop.fail(Fatal::Io(format!("writing a snapshot: {error}"))),
    }
}

fn arrived(shared: &Shared, from: NodeId, meta: SnapshotMeta, part: ImagePart) {
    match verify(&shared.images, part, meta) {
        Ok(image) => {
            log::info!(
                target: "NodeSync",
                "Snapshot at index {} with {} keys received from {from}",
                meta.index,
                image.stats().keys
            );
            shared.core.snapshot_arrived(from, Box::new(image));
            remove_older(shared);
        }
        // This node's disk has failed, and it cannot tell what else it has lost.
        Err(ImageError::Io(error)) if !is_full(&error) => {
            shared.stop.fail(Fatal::Io(format!("receiving a snapshot: {error}")));
        }
        // The peer's bytes are wrong, or there is no room. Nothing was replaced; the leader sends
        // it again.
        Err(error) => {
            log::warn!(target: "NodeSync", "Snapshot from {from} refused: {error}");
        }
    }
}

/// Removes images older than the one that the log relies on. That need not be the latest image: the
/// replica has no use for an image that arrives when its log is already beyond it.
fn remove_older(shared: &Shared) {
    if let Some(relied_on) = shared.core.durable_snapshot()
        && let Err(error) = shared.images.remove_older(relied_on)
    {
        log::warn!(target: "NodeSync", "Cannot remove an old snapshot: {error}");
    }
}

/// Makes a spare segment. False if the disk has no room for it.
fn make_spare(shared: &Shared, job: SpareJob<FileDisk>, failed_before: bool) -> bool {
    match job.run() {
        Ok(()) => {
            if failed_before {
                report_room(shared);
            }
            true
        }
        Err(error) if is_full(&error) => {
            // Refusing writes now leaves the rest of the current segment for admitted writes.
            if !failed_before {
                log::error!(target: "FAILURE", "Disk full: writes are refused until there is room");
                shared.core.step([Input::DiskFull(true)]);
            }
            false
        }
        Err(error) => {
            shared.stop.fail(Fatal::Io(format!("making a log segment: {error}")));
            true
        }
    }
}

fn report_room(shared: &Shared) {
    log::info!(target: "RECOVERED", "The disk has room again");
    shared.core.step([Input::DiskFull(false)]);
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::{Config, NodeArgs};
    use crate::node::Node;
    use crate::node::clients::Waiter;
    use crate::node::recovery::load;
    use crate::node::tests::harness::ask;
    use crate::service::Request;
    use crate::store::Writer;
    use crate::types::{Command, Entry, Payload, When};
    use clap::Parser;

    fn start(dir: &Path) -> Node {
        let dir = dir.to_str().unwrap();
        let args = ["nodesync", "1", "--dir", dir, "--snapshot-log", "8kb"];
        let config = Config::new(NodeArgs::try_parse_from(args).unwrap()).unwrap();
        Node::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), config, Arc::default()).unwrap()
    }

    fn write(shared: &Shared) {
        let mut commands = Vec::new();
        let (value, when) = (&[7; 200][..], When::Always);
        Command::Set { key: b"k", value, when, get: false }.encode(&mut commands);
        let deadline = Instant::now() + Duration::from_secs(20);
        let waiter = Arc::<Waiter>::default();
        loop {
            let request = Request::Write(commands.clone().into());
            match ask(&shared.core, request, &waiter, Duration::from_secs(20)) {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    #[test]
    fn an_image_that_comes_too_late_removes_nothing_that_the_log_relies_on() {
        let scratch = tempfile::tempdir().unwrap();
        let node = start(scratch.path());
        let shared = &node.shared;
        // Enough for one snapshot, and too little for a second one.
        (0..36).for_each(|_| write(shared));
        while shared.core.status().snapshot == 0 {
            std::thread::yield_now();
        }
        let relied_on = shared.core.durable_snapshot().unwrap();
        (0..3).for_each(|_| write(shared));
        let mut late = Writer::new();
        for index in 1..=relied_on.index + 1 {
            late.apply(&Entry { index, term: 1, payload: Payload::Noop }, false).unwrap();
        }
        let image = late.image();
        let mut part = shared.images.begin().unwrap();
        let meta = image.meta();
        image.write(&mut part).unwrap();
        assert!(relied_on < meta && meta.index < shared.core.status().commit);
        arrived(shared, NodeId(2), meta, part);
        assert!(load(&shared.images, &shared.config, relied_on).is_ok());
        node.stop().unwrap();
        start(scratch.path()).stop().unwrap();
    }
}

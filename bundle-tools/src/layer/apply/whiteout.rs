//! Whiteouts: what a layer says is no longer there.
//!
//! They concern the lower layers only, wherever in the archive they stand: what the
//! same layer has is hidden by layers above it alone (image-spec, layer.md,
//! "Whiteouts").

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, XattrFlags, fsetxattr, mknodat, statat};
use rustix::io::Errno;

use super::tree::Directory;
use super::{Applier, Error, Place, Whiteouts, remove};

/// What stands behind `.wh.` for an opaque directory.
const OPAQUE: &[u8] = b".wh..opq";

impl Applier<'_> {
    /// Applies the entry `.wh.<hidden>` at `place`.
    pub(super) fn whiteout(&mut self, place: &Place<'_>, hidden: &[u8]) -> Result<(), Error> {
        if hidden == OPAQUE {
            return match self.options.whiteouts {
                Whiteouts::Apply | Whiteouts::Plain => self.remove_lower_children(place),
                _ => self.set_opaque(&place.parent, place.path),
            };
        }
        // ".wh..." would take the parent directory.
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::refused(place.path, "a whiteout without a name"));
        }
        match self.options.whiteouts {
            Whiteouts::Apply | Whiteouts::Plain => self.remove_lower(place, hidden),
            _ => self.hide(place, hidden),
        }
    }

    /// Marks a directory so that overlayfs shows nothing of the lower layers' in it.
    pub(super) fn set_opaque(&self, directory: &Directory, path: &[u8]) -> Result<(), Error> {
        let name = match self.options.whiteouts {
            Whiteouts::Apply | Whiteouts::Plain => return Ok(()),
            Whiteouts::Overlay => c"trusted.overlay.opaque",
            Whiteouts::OverlayUser => c"user.overlay.opaque",
        };
        fsetxattr(&directory.fd, name, b"y", XattrFlags::empty())
            .map_err(Error::entry("mark as opaque", path))
    }

    /// Whether the node at a place is a whiteout in overlayfs's form, and means one here.
    pub(super) fn is_whiteout(&self, place: &Place<'_>) -> bool {
        !matches!(self.options.whiteouts, Whiteouts::Apply | Whiteouts::Plain)
            && statat(&place.parent.fd, place.name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                    && stat.st_rdev == 0
            })
    }

    fn hide(&mut self, place: &Place<'_>, hidden: &[u8]) -> Result<(), Error> {
        let parent = &place.parent;
        match mknodat(
            &parent.fd,
            hidden,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        ) {
            Ok(()) => Ok(()),
            // The layer has something of that name itself. A file hides the
            // lower one anyway; a directory has to be told.
            Err(Errno::EXIST) => {
                let flags = super::tree::directory_flags();
                match rustix::fs::openat(&parent.fd, hidden, flags, Mode::empty()) {
                    Ok(fd) => {
                        let directory = Directory {
                            fd,
                            path: parent.join(hidden),
                            plain: false,
                        };
                        self.set_opaque(&directory, place.path)
                    }
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                    Err(error) => Err(Error::entry("apply whiteout", place.path)(error)),
                }
            }
            Err(error) => Err(Error::entry("make whiteout", place.path)(error)),
        }
    }

    fn remove_lower(&mut self, place: &Place<'_>, hidden: &[u8]) -> Result<(), Error> {
        let path = place.parent.join(hidden);
        self.tree.forget();
        let ours = &self.ours;
        let locked = self.locked();
        let parent = place.parent.fd.as_fd();
        remove::prune(parent, hidden, &mut path.clone(), locked, &|path| {
            ours.contains(path)
        })
        .map_err(Error::entry("apply whiteout", place.path))?;
        self.drop_notes(&path);
        Ok(())
    }

    fn remove_lower_children(&mut self, place: &Place<'_>) -> Result<(), Error> {
        let mut path = place.parent.path.clone();
        self.tree.forget();
        let ours = &self.ours;
        let locked = self.locked();
        let parent = place.parent.fd.as_fd();
        remove::prune_children(parent, &mut path, locked, &|path| ours.contains(path))
            .map_err(Error::entry("apply whiteout", place.path))?;
        let own_note = self.late.remove(&path);
        self.drop_notes(&path);
        self.late.extend(own_note.map(|note| (path, note)));
        Ok(())
    }
}

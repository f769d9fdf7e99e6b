//! What a controller reports while a command runs, on stderr.

use xtent::target::Target;
use xtent::volume::Volume;

use super::failure::complain;

/// Says what the controller of a volume reported since the last call.
pub(super) fn tell(volume: &Volume) {
    tell_of(&volume.target(), complain);
}

/// Gives what the controller of a target reported since the last call to `say`, a line each.
pub(super) fn tell_of(target: &Target, mut say: impl FnMut(&str)) {
    for event in target.events() {
        say(&format!("{}: event: {event}", target.info().target));
    }
}

//! Hooks that do not do what they were written for.

use super::super::finding::Severity::{MayLose, WillLose};
use super::super::setup::Hook;
use super::{Check, new};
use crate::model::incident::Cause;

pub(super) fn check(check: &mut Check) {
    for container in &check.setup.containers {
        let Hook::Does(effect) = &container.hook else { continue };
        let Some(broken) = &effect.value.broken else { continue };
        let why = format!("the preStop hook fails, and the stop signal follows at once: {}", broken.why);
        let mut found = new(Cause::PrestopFailed, if broken.sure { WillLose } else { MayLose }, why);
        if !broken.sure {
            found = found.missing("image-content", "what the image holds decides whether it fails");
        }
        let Some(server) = container.servers.first() else { continue };
        check.found(Some(container), *server, found.at(effect.at.as_ref()));
    }
}

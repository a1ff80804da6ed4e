//! The loads of the scenarios.

use crate::accuracy::Draw;
use crate::load::LoadConf;
use crate::php::Pool;
use crate::scene::Loads;
use crate::site::Site;
use std::time::Duration;

/// So many attempts of each load are refused before it ends.
pub(super) const REFUSED: u64 = 12;

pub(super) fn load(d: &Draw, site: &Site, path: &str, prefix: &str) -> LoadConf {
    let mut conf = LoadConf::new(site.pod_addr(d.layout.v6), path);
    conf.prefix = prefix.into();
    conf
}

/// Requests that php works on for so long.
pub(super) fn slow(d: &Draw, site: &Site, ms: u64) -> LoadConf {
    let mut conf = load(d, site, &format!("/slow.php?ms={ms}"), "slow");
    (conf.connections, conf.max_refused) = (d.slow, Some(REFUSED));
    conf.refused_pause = Duration::from_millis(50);
    // An ondemand pool makes one child for connections that come at once, and the others wait for it.
    conf.rate = (d.layout.pool == Pool::Ondemand).then_some(25.0);
    conf
}

/// For slow requests that are sent once and have to be with php all together: an ondemand pool makes no child for a connection
/// that comes while another child starts, and leaves it waiting until the next one comes.
pub(super) fn sent_once(d: &mut Draw) {
    if d.layout.pool == Pool::Ondemand {
        d.layout.pool = Pool::Dynamic;
    }
}

/// Requests that nginx answers at once.
pub(super) fn fast(d: &Draw, site: &Site) -> LoadConf {
    let mut conf = load(d, site, "/static", "fast");
    (conf.connections, conf.keep_alive, conf.max_refused) = (d.fast, d.layout.keep_alive, Some(REFUSED));
    conf.think = Duration::from_millis(2);
    conf
}

/// Both; php has a child for every slow request.
pub(super) fn both(d: &Draw, site: &Site, ms: u64) -> Loads {
    Loads { slow: Some(slow(d, site, ms)), in_php: d.slow, fast: Some(fast(d, site)), answered: 100 }
}

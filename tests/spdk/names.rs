//! What is found by name, and what is said of a wrong one.

use std::time::Duration;

use xtent::ErrorKind;
use xtent::spdk::{Controller, ControllerOptions, discover};

use super::common::nvmf::SUBNQN;
use super::{alone, memory_target};

#[test]
fn a_discovery_service_shows_what_can_be_opened() {
    let Some(_alone) = alone() else { return };
    let target = memory_target(512);
    let id = target.discovery().parse().unwrap();
    let offers = discover(&id, Duration::from_secs(30)).unwrap();
    let disks: Vec<_> = offers.iter().filter(|offer| !offer.discovery).collect();
    let tcp = disks.iter().find(|offer| offer.transport == "TCP").unwrap();
    assert_eq!(tcp.subnqn, SUBNQN);
    let id = tcp.target().strip_prefix("spdk:").unwrap().parse().unwrap();
    Controller::open(&id, Some(1), ControllerOptions::default()).unwrap();
}

#[test]
fn wrong_names_are_errors_that_help() {
    let Some(_alone) = alone() else { return };
    let target = memory_target(512);
    let options = ControllerOptions {
        connect_timeout: Duration::from_secs(10),
        ..ControllerOptions::default()
    };
    let error = |id: &str, nsid| {
        let id = id.parse().unwrap();
        Controller::open(&id, nsid, options).unwrap_err()
    };
    let missing = error(&target.discovery(), None);
    assert_eq!(missing.kind(), ErrorKind::InvalidInput);
    assert!(missing.to_string().contains("subnqn"), "{missing}");
    let namespace = error(&target.tcp(), Some(7));
    assert_eq!(namespace.kind(), ErrorKind::NotFound);
    assert!(namespace.to_string().contains("has 1"), "{namespace}");
    let unknown = error(&target.tcp().replace("xtent-test", "other"), None);
    assert!(unknown.to_string().contains("xtent list"), "{unknown}");
    let socket = error("trtype=VFIOUSER traddr=/nowhere", None);
    assert_eq!(socket.kind(), ErrorKind::NotFound);
    let id = target.vfio_user().parse().unwrap();
    let open = Controller::open(&id, None, options).unwrap();
    let twice = error(&target.vfio_user(), None);
    assert_eq!(twice.kind(), ErrorKind::Busy);
    drop(open);
    Controller::open(&id, None, options).unwrap();
}

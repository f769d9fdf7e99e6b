//! Targets found by name, and the errors for wrong names.

use std::process::Command;
use std::time::Duration;

use xtent::ErrorKind;
use xtent::internals::spdk::{SpdkController, SpdkControllerOptions, discover};

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
    let id = tcp.target().unwrap();
    let id = id.strip_prefix("spdk:").unwrap().parse().unwrap();
    SpdkController::open(&id, Some(1), SpdkControllerOptions::default()).unwrap();
}

#[test]
fn wrong_names_are_errors_that_help() {
    let Some(_alone) = alone() else { return };
    let target = memory_target(512);
    let options = SpdkControllerOptions {
        connect_timeout: Duration::from_secs(10),
        ..SpdkControllerOptions::default()
    };
    let error = |id: &str, nsid| {
        let id = id.parse().unwrap();
        SpdkController::open(&id, nsid, options).unwrap_err()
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
    let open = SpdkController::open(&id, None, options).unwrap();
    let twice = error(&target.vfio_user(), None);
    assert_eq!(twice.kind(), ErrorKind::Busy);
    drop(open);
    SpdkController::open(&id, None, options).unwrap();
}

#[test]
fn the_command_shows_controllers_and_what_a_service_offers() {
    let Some(_alone) = alone() else { return };
    let target = memory_target(512);
    let xtent = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_xtent");
        let ended = Command::new(program).args(args).output().unwrap();
        let text = [ended.stdout, ended.stderr].concat();
        String::from_utf8(text).unwrap()
    };
    let list = xtent(&["list", &format!("spdk:{}", target.discovery())]);
    assert!(list.contains(&format!("subnqn={SUBNQN}")), "{list}");
    // The socket on which it serves the same disk is of its own machine.
    assert!(list.contains("by no transport to here"), "{list}");
    for id in [target.tcp(), target.vfio_user()] {
        let info = xtent(&["info", &format!("spdk:{id}")]);
        assert!(info.contains("SPDK's NVMe driver"), "{info}");
        assert!(info.contains("serial XTENT"), "{info}");
        let smart = xtent(&["smart", &format!("spdk:{id}")]);
        assert!(smart.contains("SPDK has this controller"), "{smart}");
    }
}

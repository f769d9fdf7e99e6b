//! The report of `xtent compare`, as a browser lays it out.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::common;
use super::{path_of, prototype_image, run};

/// Appended to the page under test: clipped elements and overlapping labels, as JSON in the title.
const PROBE: &str = r#"<script>
addEventListener("load", () => {
  const problems = [];
  const name = (e) => (e.tagName + "." + (e.getAttribute("class") || "") + " " + e.textContent).slice(0, 80);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) problems.push("the page: " + root.scrollWidth + " > " + root.clientWidth);
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg") && e.tagName !== "svg") continue;
    if (getComputedStyle(e).display === "inline") continue;
    if (e.scrollWidth > e.clientWidth && e.clientWidth > 0) problems.push("clipped: " + name(e));
    const box = e.getBoundingClientRect();
    if (box.right > root.clientWidth + 1 || box.left < -1) problems.push("outside: " + name(e));
  }
  let labels = 0;
  const overlaps = (list) => {
    for (let i = 0; i < list.length; i++) for (let j = i + 1; j < list.length; j++) {
      const a = list[i].getBoundingClientRect(), b = list[j].getBoundingClientRect();
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
        problems.push("overlap: " + name(list[i]) + " | " + name(list[j]));
    }
  };
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")];
    labels += texts.length;
    overlaps(texts);
    const box = svg.getBoundingClientRect();
    for (const text of texts) {
      const t = text.getBoundingClientRect();
      if (t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 || t.bottom > box.bottom + 1)
        problems.push("cut off: " + name(text));
    }
  }
  overlaps([...document.querySelectorAll("th, td")]);
  overlaps([...document.querySelectorAll("h1, h2, p, .cards > div, table, figure, dl, ul")]);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const luminance = (color) => color.match(/[\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
  const body = getComputedStyle(document.body);
  if ((luminance(body.backgroundColor) < luminance(body.color)) !== dark) problems.push("colours are not those of the scheme");
  document.title = "PROBE" + JSON.stringify({problems, labels, dark, width: innerWidth}) + "EBORP";
});
</script>"#;

fn browser() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| common::has_tool(name))
}

/// Lays the page out; what the probe found.
fn probe(browser: &str, dir: &Path, page: &str, width: u32, more: &[&str]) -> Value {
    let path = dir.join("probed.html");
    fs::write(&path, page.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
    let profile = dir.join("profile");
    let output = Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args([
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},2000"))
        .args(more)
        .args(["--dump-dom", &format!("file://{}", path.display())])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let console: Vec<&str> = stderr.lines().filter(|l| l.contains(":CONSOLE")).collect();
    assert!(console.is_empty(), "messages on the console: {console:?}");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = dom
        .split_once("PROBE{")
        .and_then(|(_, rest)| rest.split_once("EBORP"));
    let Some((found, _)) = found else {
        panic!("{browser} did not lay the page out: {stderr}");
    };
    let found = format!("{{{found}")
        .replace("&gt;", ">")
        .replace("&lt;", "<");
    let found = found.replace("&amp;", "&");
    serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error}: {found}"))
}

#[test]
fn nothing_is_clipped_and_no_labels_overlap() {
    let Some(browser) = browser() else {
        common::skipped("chromium is not installed");
        return;
    };
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.html");
    let args = [
        "compare",
        "--image",
        &path_of(&image),
        "--read-file",
        "/data",
        "--write-file",
        "/dir/copy",
        "--rounds",
        "2",
        "--runtime",
        "50ms",
        "--ramp-time",
        "10ms",
        "--report",
        report.to_str().unwrap(),
    ];
    let (stdout, _) = run(0, &args);
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    // What every result names.
    for word in [
        "xtent's target: ",
        "hugepages",
        "waiting by polling",
        "controller: inline",
    ] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    let page = fs::read_to_string(&report).unwrap();
    for width in [800, 1200, 1600] {
        for dark in [false, true] {
            // Blink's numbers of the schemes: dark 0, light 1.
            let scheme = u8::from(!dark);
            let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
            let found = probe(browser, dir.path(), &page, width, &[&scheme]);
            assert_eq!(found["width"], width, "{found}");
            assert_eq!(found["dark"], dark, "{found}");
            assert_eq!(
                found["problems"],
                serde_json::json!([]),
                "{width} pixels, dark: {dark}"
            );
            assert!(found["labels"].as_u64() > Some(100), "{found}");
        }
    }
    // On A4 paper, without its margins of 12 mm.
    let printed = page.replace("@media print", "@media all");
    let found = probe(browser, dir.path(), &printed, 703, &[]);
    assert_eq!(found["problems"], serde_json::json!([]), "on paper");
    // The probe finds what it looks for.
    let broken = page.replace(
        "<h2>Figures</h2>",
        "<div style=\"width:90px\"><table><tr><td style=\"white-space:nowrap\">too wide for its place</table></div>",
    );
    let found = probe(browser, dir.path(), &broken, 800, &[]);
    assert!(found["problems"].to_string().contains("clipped"), "{found}");
}

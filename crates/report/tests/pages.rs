//! Pages are self-contained, well-formed and safe to open whatever a device called itself.

mod synthetic;

use federation::{Fact, Record, Status};
use synthetic::{EMOTION, Shape};
use undertone_report::html::{Run, comparison, report};
use undertone_report::{Ending, Fold, RunInfo, Summary};

const HOSTILE: &str = "\"><script>alert('x')</script><img src=x onerror=alert(1)>&\u{7}";

fn run(info: &RunInfo, trace: &[Record]) -> (Fold, Summary) {
    let fold = Fold::of(trace);
    let (trace_hash, weights_hash) = ("7e57".to_owned(), None);
    let status = Status::Failed(format!("because {HOSTILE}"));
    let ending = Ending { status, time: fold.now, wall_s: 1.0, trace_hash, weights_hash };
    let summary = Summary::of(info, &fold, &ending);
    (fold, summary)
}

/// The element names of a page; panics where tags do not nest or an attribute is not quoted.
fn elements(page: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let style = page.find("<style>").unwrap() + 7..page.find("</style>").unwrap();
    let page = format!("{}{}", &page[..style.start], &page[style.end..]);
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("a tag ends");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        let name = tag.split(' ').next().unwrap().trim_end_matches('/').to_owned();
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        all.push(name.clone());
        if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<String>::new());
    all
}

#[test]
fn hostile_names_stay_text() {
    let mut info = synthetic::info(&EMOTION);
    info.notes.push(HOSTILE.to_owned());
    info.fleet[0].class = HOSTILE.to_owned();
    let names = [&mut info.run, &mut info.method, &mut info.model, &mut info.dataset];
    names.into_iter().for_each(|name| *name = HOSTILE.to_owned());
    let mut trace = synthetic::trace(&EMOTION);
    for record in &mut trace {
        match &mut record.fact {
            Fact::Joined { class: text, .. }
            | Fact::Lost { reason: text, .. }
            | Fact::Ran { label: text, .. } => {
                *text = HOSTILE.to_owned();
            }
            _ => {}
        }
    }
    let (fold, summary) = run(&info, &trace);
    let run = Run { summary: &summary, fold: Some(&fold), scenario: Some(HOSTILE), partition_svg: None };
    for page in [report(&run), comparison(HOSTILE, &[run, run])] {
        let elements = elements(&page);
        assert!(elements.iter().all(|name| name != "script" && name != "img"));
        assert!(page.contains("&lt;script&gt;") && !page.contains('\u{7}'));
    }
}

#[test]
fn a_page_asks_nothing_of_the_network_and_tells_all() {
    let info = synthetic::info(&EMOTION);
    let (fold, summary) = run(&info, &synthetic::trace(&EMOTION));
    let partition_svg = Some("<svg><title>who holds what</title></svg>");
    let scenario = Some("[run]\nseed = 7\n");
    let page = report(&Run { summary: &summary, fold: Some(&fold), scenario, partition_svg });
    elements(&page);
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !outside.contains("http:")
            && !outside.contains("https:")
            && !outside.contains("@import")
            && !outside.contains("url(")
    );
    let accuracy = format!("{:.4}", summary.eval.as_ref().unwrap().accuracy.unwrap());
    let said = [&accuracy, "every figure on this page is invented", "jetson-nano", "deadline"];
    for text in
        said.into_iter().chain(["virtual time, min", "who holds what", "seed = 7", "failed: because"])
    {
        assert!(page.contains(text), "{text} is missing");
    }
}

#[test]
fn runs_with_nothing_to_show_have_a_page() {
    let shape = Shape { rounds: 0, devices: 0, ..EMOTION };
    let (fold, summary) = run(&synthetic::info(&shape), &[]);
    let run = Run { summary: &summary, fold: Some(&fold), scenario: None, partition_svg: None };
    assert!(report(&run).contains("No round ended"));
    elements(&comparison("nothing", &[run, run]));
    elements(&comparison("nothing at all", &[]));
}

/// A trace of a thousand devices makes a page that a phone can open.
#[test]
fn a_page_stays_small() {
    let shape = Shape { devices: 1000, rounds: 40, ..EMOTION };
    let (fold, summary) = run(&synthetic::info(&shape), &synthetic::trace(&shape));
    let run = Run { summary: &summary, fold: Some(&fold), scenario: None, partition_svg: None };
    let bytes = report(&run).len();
    assert!(bytes < 1_000_000, "{bytes} bytes");
}

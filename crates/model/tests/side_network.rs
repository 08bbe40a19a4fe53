//! The side network: its gradient against finite differences in f64, and the identities it rests on.

mod support;

use base::{Seed, Stream};
use ops::{Mat, Workspace};
use support::{json, largest_difference, mean_head, repository, workspace};
use undertone_model::side::{
    AddedTo, Form, Pivot, Reads, SideCard, SideConfig, SideNetwork, Width, even_layers, load, save,
    squared_loss, squared_loss_backward, tap,
};
use undertone_model::{Model, PeftConfig, PeftKind, Pooling, Source, Task, Tokens, logits};

const FORMS: [Form; 2] = [Form::Cascade { r: 3 }, Form::Mlp { hidden: 7 }];

fn network(form: Form, backbones: Vec<Width>) -> SideNetwork {
    SideNetwork::new(SideConfig { form, taps: 3, width: 6, outputs: 4, backbones }).unwrap()
}

/// Every parameter away from where it starts, so that no gradient is zero by chance.
fn anywhere(network: &SideNetwork, stream: &mut Stream) -> Vec<f32> {
    let start = network.initial(Seed(3));
    start.into_iter().map(|value| value + 0.4 * stream.normal() as f32).collect()
}

fn normal(ws: &Workspace, rows: usize, width: usize, stream: &mut Stream) -> Mat {
    let values: Vec<f32> = (0..rows * width).map(|_| stream.normal() as f32).collect();
    ws.from_slice(rows, width, &values).unwrap()
}

/// The network once more, as naive loops in f64: a row of outputs from that row of the taps.
struct Naive<'a> {
    network: &'a SideNetwork,
    theta: Vec<f64>,
}

impl Naive<'_> {
    fn weight(&self, name: &str) -> Vec<f64> {
        let site = self.network.sites().iter().find(|site| site.name == name);
        self.theta[site.unwrap_or_else(|| panic!("no site {name}")).range()].to_vec()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let product = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        self.weight(name).chunks(x.len()).map(product).collect()
    }

    fn row(&self, backbone: usize, taps: &[Vec<f64>]) -> Vec<f64> {
        let config = self.network.config();
        let project = |tap: &Vec<f64>| match config.backbones[backbone] {
            Width::Own => tap.clone(),
            Width::Projected(_) => self.linear(&format!("backbones.{backbone}.projection.weight"), tap),
        };
        let taps: Vec<Vec<f64>> = taps.iter().map(project).map(|tap| normed(&tap)).collect();
        let state = match config.form {
            Form::Cascade { .. } => self.cascade(&taps),
            Form::Mlp { .. } => self.mlp(&taps),
        };
        let normed = normed(&state);
        let (scale, shift) = (self.weight("norm.weight"), self.weight("norm.bias"));
        let read: Vec<f64> = (0..state.len()).map(|i| normed[i] * scale[i] + shift[i]).collect();
        sum(&self.linear("head.weight", &read), &self.weight("head.bias"))
    }

    fn cascade(&self, taps: &[Vec<f64>]) -> Vec<f64> {
        let mut state = vec![0.0; taps[0].len()];
        for (i, tap) in taps.iter().enumerate() {
            let mu = 1.0 / (1.0 + (-self.weight(&format!("adapters.{i}.gate"))[0]).exp());
            let input: Vec<f64> = tap.iter().zip(&state).map(|(a, h)| (1.0 - mu) * a + mu * h).collect();
            let down = self.linear(&format!("adapters.{i}.down.weight"), &input);
            let inner = sum(&down, &self.weight(&format!("adapters.{i}.down.bias")));
            let active: Vec<f64> = inner.into_iter().map(gelu).collect();
            state = sum(&input, &self.linear(&format!("adapters.{i}.up.weight"), &active));
        }
        state
    }

    fn mlp(&self, taps: &[Vec<f64>]) -> Vec<f64> {
        let mut inner = self.weight("hidden.bias");
        for (i, tap) in taps.iter().enumerate() {
            inner = sum(&inner, &self.linear(&format!("taps.{i}.weight"), tap));
        }
        inner.into_iter().map(gelu).collect()
    }

    /// The mean over rows of the squared error.
    fn loss(&self, backbone: usize, taps: &[Mat], target: &Mat) -> f64 {
        let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let row_loss = |r: usize| {
            let row: Vec<Vec<f64>> = taps.iter().map(|tap| wide(tap.row(r))).collect();
            let error = |(y, t): (f64, f64)| (y - t).powi(2);
            self.row(backbone, &row).into_iter().zip(wide(target.row(r))).map(error).sum::<f64>()
        };
        (0..target.rows()).map(row_loss).sum::<f64>() / target.rows() as f64
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn normed(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt()).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()))
}

/// The loss and the gradient of its mean over the rows.
fn loss_and_gradient(
    network: &SideNetwork,
    theta: &[f32],
    backbone: usize,
    taps: &[Mat],
    target: &Mat,
) -> (f64, Vec<f32>) {
    let ws = workspace(1);
    let mut grad = vec![0.0; theta.len()];
    let (y, trail) = network.forward_for_backward(&ws, theta, backbone, taps).unwrap();
    let (sum, dy) = squared_loss_backward(&ws, &y, target, 1.0 / y.rows() as f32).unwrap();
    network.backward(&ws, theta, backbone, taps, (trail, &dy), &mut grad).unwrap();
    (sum / y.rows() as f64, grad)
}

#[test]
fn gradients_agree_with_finite_differences_in_f64() {
    for form in FORMS {
        for (backbone, width) in [(0, 6), (1, 9)] {
            let network = network(form, vec![Width::Own, Width::Projected(9)]);
            let (ws, mut stream) = (workspace(1), Seed(5).stream());
            let theta = anywhere(&network, &mut stream);
            let taps: Vec<Mat> = (0..3).map(|_| normal(&ws, 5, width, &mut stream)).collect();
            let target = normal(&ws, 5, 4, &mut stream);
            let (loss, grad) = loss_and_gradient(&network, &theta, backbone, &taps, &target);
            let wide: Vec<f64> = theta.iter().map(|&x| f64::from(x)).collect();
            let mut naive = Naive { network: &network, theta: wide };
            assert!((naive.loss(backbone, &taps, &target) - loss).abs() < 1e-5 * loss);
            let step = 1e-5;
            for site in network.sites() {
                for at in site.range() {
                    let here = naive.theta[at];
                    let mut probe = |to: f64| {
                        naive.theta[at] = to;
                        naive.loss(backbone, &taps, &target)
                    };
                    let slope = (probe(here + step) - probe(here - step)) / (2.0 * step);
                    probe(here);
                    let found = f64::from(grad[at]);
                    let off = (found - slope).abs();
                    assert!(
                        off < 1e-3 * slope.abs() + 1e-4,
                        "{form:?} {} {at}: {found}, not {slope}",
                        site.name
                    );
                }
            }
        }
    }
}

fn tiny(task: &Task) -> (Model, Vec<f32>, Tokens) {
    let dir = repository("golden/llama");
    let peft = PeftConfig::new(PeftKind::None);
    let (model, theta) = Model::load(&Source::Directory(dir), task, &peft, Seed(7)).unwrap();
    let tokens = Tokens::of(&[vec![3, 9, 4, 1, 7], vec![5, 2], vec![8, 8, 6]]);
    (model, theta, tokens)
}

#[test]
fn training_from_pivot_rows_equals_training_from_every_row_read_at_the_pivot() {
    let last = Task::Classification { classes: 4, pooling: Pooling::Last, squash: None };
    let (model, frozen, tokens) = tiny(&last);
    let layers: Vec<usize> = (0..model.spec.layers).collect();
    let pivots: Vec<u32> = tokens.starts[1..].iter().map(|end| end - 1).collect();
    let taps_at =
        |pivot: &Pivot| tap(&workspace(1), &model, &frozen, &tokens, &layers, pivot).unwrap().taps;
    let (every, pooled) = (taps_at(&Pivot::Every), taps_at(&Pivot::Pooled(Pooling::Last)));
    let picked = taps_at(&Pivot::Rows(pivots.clone()));
    for form in FORMS {
        let (taps, width) = (layers.len(), model.spec.width);
        let config = SideConfig { form, taps, width, outputs: 4, backbones: vec![Width::Own] };
        let network = SideNetwork::new(config).unwrap();
        let (ws, mut stream) = (workspace(1), Seed(6).stream());
        let theta = anywhere(&network, &mut stream);
        let target = normal(&ws, 3, 4, &mut stream);
        let (loss, grad) = loss_and_gradient(&network, &theta, 0, &pooled, &target);
        let by_row = loss_and_gradient(&network, &theta, 0, &picked, &target);
        assert_eq!((loss, grad.clone()), by_row);

        let (y, trail) = network.forward_for_backward(&ws, &theta, 0, &every).unwrap();
        let at_pivots = Pivot::Rows(pivots.clone()).select(&ws, &y, &tokens.starts).unwrap();
        let (sum, dpivots) = squared_loss_backward(&ws, &at_pivots, &target, 1.0 / 3.0).unwrap();
        let mut dy = ws.zeros(y.rows(), 4).unwrap();
        for (at, &row) in pivots.iter().enumerate() {
            dy.row_mut(row as usize).copy_from_slice(dpivots.row(at));
        }
        let mut full = vec![0.0; theta.len()];
        network.backward(&ws, &theta, 0, &every, (trail, &dy), &mut full).unwrap();
        assert!((sum / 3.0 - loss).abs() < 1e-6 * loss, "{sum} against {loss}");
        let largest = grad.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(largest_difference(&grad, &full) < 1e-5 * largest.max(1.0), "{form:?}");
    }
}

#[test]
fn the_residual_loss_is_the_squared_loss_of_the_sum() {
    let network = network(FORMS[0], vec![Width::Own]);
    let (ws, mut stream) = (workspace(1), Seed(8).stream());
    let theta = anywhere(&network, &mut stream);
    let taps: Vec<Mat> = (0..3).map(|_| normal(&ws, 9, 6, &mut stream)).collect();
    let (own, truth) = (normal(&ws, 9, 4, &mut stream), normal(&ws, 9, 4, &mut stream));
    let mut difference = ws.copy(&truth).unwrap();
    difference.iter_mut().zip(own.iter()).for_each(|(d, b)| *d -= b);
    let (residual, gradient) = loss_and_gradient(&network, &theta, 0, &taps, &difference);

    let (mut joint, trail) = network.forward_for_backward(&ws, &theta, 0, &taps).unwrap();
    joint.add(&own).unwrap();
    let (sum, dy) = squared_loss_backward(&ws, &joint, &truth, 1.0 / 9.0).unwrap();
    let mut against_truth = vec![0.0; theta.len()];
    network.backward(&ws, &theta, 0, &taps, (trail, &dy), &mut against_truth).unwrap();
    assert!((residual - sum / 9.0).abs() < 1e-6 * residual);
    assert!((squared_loss(&joint, &truth).unwrap() - sum).abs() < 1e-12);
    let largest = gradient.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(largest_difference(&gradient, &against_truth) < 1e-5 * largest.max(1.0));
}

#[test]
fn at_the_start_the_sum_is_the_backbone_itself() {
    let (model, frozen, tokens) = tiny(&mean_head(4));
    let layers: Vec<usize> = (0..model.spec.layers).collect();
    let ws = workspace(1);
    let tapped = tap(&ws, &model, &frozen, &tokens, &layers, &Pivot::Pooled(Pooling::Mean)).unwrap();
    let own = logits(&ws, &model, &frozen, &tokens).unwrap();
    for form in FORMS {
        let (taps, width) = (layers.len(), model.spec.width);
        let config = SideConfig { form, taps, width, outputs: 4, backbones: vec![Width::Own] };
        let network = SideNetwork::new(config).unwrap();
        let mut sum = network.forward(&ws, &network.initial(Seed(1)), 0, &tapped.taps).unwrap();
        sum.add(&own).unwrap();
        assert_eq!(&*sum, &*own);
    }
}

#[test]
fn files_come_back_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let network = network(FORMS[0], vec![Width::Own, Width::Projected(9)]);
    let theta = anywhere(&network, &mut Seed(2).stream());
    let labels = (0..4).map(|class| format!("class {class}")).collect();
    let network = network.config().clone();
    let card = SideCard {
        network,
        layers: vec![vec![0, 2, 3], vec![1, 4, 7]],
        reads: Reads::Pivot,
        added_to: AddedTo::Probabilities,
        labels,
    };
    save(dir.path(), &card, &theta).unwrap();
    let (back, _, again) = load(dir.path()).unwrap();
    assert_eq!((&back, again), (&card, theta));

    let config = dir.path().join("side_network_config.json");
    let mut value = json(&config);
    value["layers"].as_array_mut().unwrap().pop();
    std::fs::write(&config, value.to_string()).unwrap();
    assert!(load(dir.path()).unwrap_err().to_string().contains("every backbone"));
    value = serde_json::to_value(&back).unwrap();
    value["network"]["width"] = 12.into();
    std::fs::write(&config, value.to_string()).unwrap();
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("projection") && error.contains("shape"), "{error}");
    value["network"]["width"] = 0.into();
    std::fs::write(&config, value.to_string()).unwrap();
    assert!(load(dir.path()).unwrap_err().to_string().contains("width"));
}

#[test]
fn backbones_of_any_depth_are_cut_into_even_blocks() {
    assert_eq!(even_layers(6, 6).unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(even_layers(12, 6).unwrap(), [1, 3, 5, 7, 9, 11]);
    assert_eq!(even_layers(7, 3).unwrap(), [1, 3, 6]);
    assert!(even_layers(5, 6).is_err() && even_layers(5, 0).is_err());
}

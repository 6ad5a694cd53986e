//! What a PersRM's hidden states give at a step, and the rewards that are read off them, where the model is.

use std::sync::Arc;

use attune_guidance::RowError;
use attune_kernels::{
    Edits, EmbeddingTable, Reference, ScoreJob, SelectRow,
    cuda::{Array, CardRow, CardScore, Element, Gpu, Matrix},
    score as score_on_cpu,
};

use crate::{
    ForwardError,
    ops::{Hardware, Rows, Table},
};

/// One row's features `phi(h)`, `[d]`, and the weights that they are to be multiplied by.
pub enum Feature {
    /// Multiplied already.
    Cpu(Vec<f32>),
    /// On this card, as they are; the weights beside them.
    Card(Gpu, CardRow, Option<Arc<Array<f32>>>),
}

/// A person's `w_p`, `[d]`.
pub enum PersonWeights {
    /// Here.
    Cpu(Vec<f32>),
    /// On the model's card.
    Card(Arc<Array<f32>>),
}

/// One session's candidates to score.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// `w_p * phi(h_theta)`.
    pub policy: &'a Feature,
    /// `w_p * phi(h_ref)`, for reference MODEL.
    pub reference: Option<&'a Feature>,
    /// The candidates' ids.
    pub ids: &'a [u32],
    /// Normalise over the vocabulary instead of the candidates.
    pub over_vocabulary: bool,
}

impl Feature {
    /// Every row by itself.
    pub(crate) fn all(rows: Rows) -> Result<Vec<Self>, ForwardError> {
        match rows {
            Rows::Card(gpu, matrix) => {
                Ok(CardRow::all(matrix).into_iter().map(|row| Self::Card(gpu.clone(), row, None)).collect())
            }
            cpu @ Rows::Cpu(_) if cpu.count() == 0 => Ok(Vec::new()),
            cpu @ Rows::Cpu(_) => Ok(cpu.to_vec2()?.into_iter().map(Self::Cpu).collect()),
        }
    }

    /// Multiplies the features by `w_p`, once.
    pub fn weigh(&mut self, weights: &PersonWeights) {
        match (self, weights) {
            (Self::Cpu(features), PersonWeights::Cpu(weights)) => {
                features.iter_mut().zip(weights).for_each(|(f, w)| *f *= w);
            }
            (Self::Card(_, _, own), PersonWeights::Card(weights)) => *own = Some(Arc::clone(weights)),
            // Both come from one model.
            (Self::Cpu(_), PersonWeights::Card(_)) | (Self::Card(..), PersonWeights::Cpu(_)) => {}
        }
    }

    /// Changes the features on the host: from a card they come here and go back.
    ///
    /// # Errors
    /// The device failed.
    pub fn change(&mut self, change: impl FnOnce(&mut [f32])) -> Result<(), ForwardError> {
        match self {
            Self::Cpu(features) => change(features),
            Self::Card(gpu, row, _) => {
                let (element, width) = (row.element(), row.width());
                let mut features = gpu.numbers(&gpu.gather(element, width, &[(row, None)])?)?;
                change(&mut features);
                *row = CardRow::of(gpu.upload_numbers(element, 1, width, &features)?);
            }
        }
        Ok(())
    }

    fn on_card(&self) -> Result<(&CardRow, Option<&Array<f32>>), ForwardError> {
        match self {
            Self::Card(_, row, weights) => Ok((row, weights.as_deref())),
            Self::Cpu(_) => Err(ForwardError::Elsewhere("a feature".into())),
        }
    }

    fn on_cpu(&self) -> Result<&[f32], ForwardError> {
        match self {
            Self::Cpu(features) => Ok(features),
            Self::Card(..) => Err(ForwardError::Elsewhere("a feature".into())),
        }
    }
}

impl PersonWeights {
    pub(crate) fn new(hardware: &Hardware, weights: Vec<f32>) -> Result<Self, ForwardError> {
        match hardware {
            Hardware::Cpu(_) => Ok(Self::Cpu(weights)),
            Hardware::Card(gpu, _) => Ok(Self::Card(Arc::new(gpu.upload(&weights)?))),
        }
    }
}

/// The output embeddings of both sides; the reference's is the model's own where there is no reference.
pub(crate) struct Heads<'a> {
    pub(crate) policy: &'a Table,
    pub(crate) reference: &'a Table,
}

/// The rewards of each question, in the candidates' order. A question fails alone.
pub(crate) fn score(
    hardware: &Hardware,
    heads: &Heads<'_>,
    questions: &[Question<'_>],
) -> Result<Vec<Result<Vec<f32>, RowError>>, ForwardError> {
    match (hardware, heads.policy, heads.reference) {
        (Hardware::Cpu(threads), Table::Cpu(policy), Table::Cpu(reference)) => {
            let jobs = questions.iter().map(|q| job(q, policy, reference));
            let jobs = jobs.collect::<Result<Vec<ScoreJob<'_>>, ForwardError>>()?;
            Ok(score_on_cpu(&jobs, threads))
        }
        (Hardware::Card(gpu, element), Table::Card(policy), Table::Card(reference)) => {
            score_on_card(gpu, *element, (policy, reference), questions)
        }
        _ => Err(ForwardError::Elsewhere("an output embedding".into())),
    }
}

fn job<'a>(
    question: &Question<'a>,
    policy: &'a EmbeddingTable,
    reference: &'a EmbeddingTable,
) -> Result<ScoreJob<'a>, ForwardError> {
    let against = question.reference.map(Feature::on_cpu).transpose()?;
    Ok(ScoreJob {
        table: policy,
        features: question.policy.on_cpu()?,
        ids: question.ids,
        reference: against.map(|features| Reference { table: reference, features }),
        over_vocabulary: question.over_vocabulary,
    })
}

fn score_on_card(
    gpu: &Gpu,
    element: Element,
    heads: (&Matrix, &Matrix),
    questions: &[Question<'_>],
) -> Result<Vec<Result<Vec<f32>, RowError>>, ForwardError> {
    let mut rows = Vec::with_capacity(questions.len());
    for question in questions {
        let (hidden, weights) = question.policy.on_card()?;
        let reference = question.reference.map(Feature::on_card).transpose()?.map(|(row, _)| row);
        rows.push(CardScore { hidden, reference, weights, ids: question.ids, normalisers: None });
    }
    let wide: Vec<usize> = (0..rows.len()).filter(|&i| questions[i].over_vocabulary).collect();
    let mut damaged = Vec::new();
    if !wide.is_empty() {
        let own = wide.iter().map(|&i| Some((i, rows[i].hidden))).collect::<Vec<_>>();
        let against = wide.iter().map(|&i| Some((i, rows[i].reference?))).collect::<Vec<_>>();
        let mut sums = vec![[0.0f32; 2]; rows.len()];
        for (side, (head, places)) in [(heads.0, own), (heads.1, against)].into_iter().enumerate() {
            let places: Vec<(usize, &CardRow)> = places.into_iter().flatten().collect();
            if places.is_empty() {
                continue;
            }
            let hidden: Vec<_> = places.iter().map(|&(i, row)| (row, rows[i].weights)).collect();
            let hidden = gpu.gather(element, head.width(), &hidden)?;
            let logits = gpu.product(&hidden, head, Element::F32)?;
            let selections = vec![SelectRow { k: 1, edits: Edits::NONE }; places.len()];
            for (&(i, _), found) in places.iter().zip(gpu.select(&logits, &selections)?) {
                match found {
                    Ok(found) => sums[i][side] = found.raw_log_sum_exp,
                    Err(_) => damaged.push(i),
                }
            }
        }
        for &i in &wide {
            rows[i].normalisers = Some(sums[i]);
        }
    }
    let mut values = gpu.score(heads, &rows)?;
    for i in damaged {
        values[i] = Err(RowError::Reward);
    }
    Ok(values)
}

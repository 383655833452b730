"""Scoring of generated answers: exact match for tasks, refusal and compliance for safety. Pure; generation happens elsewhere."""

from proxymix.evaluation.refusal import Outcome, classify_refusal
from proxymix.evaluation.safety import SafetyScores, safety_scores
from proxymix.evaluation.scorers import accuracy, exact_match

__all__ = ["Outcome", "SafetyScores", "accuracy", "classify_refusal", "exact_match", "safety_scores"]

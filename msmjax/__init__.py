"""msmjax: Model Spec Midtraining in JAX, from a Model Spec to a measured generalization."""

__version__ = "0.1.0"

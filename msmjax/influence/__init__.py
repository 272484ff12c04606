"""Which training documents made a behaviour: gradients of examples, what they say, and how well that predicts retraining."""

"""TensorBoard, MLflow and Weights & Biases: what each is told about a run, and what keeps their failures away from the training."""

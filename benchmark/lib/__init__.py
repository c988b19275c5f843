"""What several benchmarks share: options, model loading, scores, result files and the look of figures."""

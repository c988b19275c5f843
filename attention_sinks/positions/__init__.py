"""How a layer knows where its keys are: rotary angles, linear biases, or not at all."""

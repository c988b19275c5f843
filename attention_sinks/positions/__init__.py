"""These modules say how a layer knows where its keys are: by rotary angles, by linear biases or not at all."""

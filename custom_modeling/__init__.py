"""What goes into a checkpoint: the runtime of the interventions and the template of the modeling file."""

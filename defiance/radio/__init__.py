"""One link's physics: channels between symbols, 5G NR waveforms and codes, and what a transmission costs."""

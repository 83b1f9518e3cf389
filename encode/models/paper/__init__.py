"""The paper's own encoders: autoencoder, ST-DIM, Transporter, motion segmentation."""
